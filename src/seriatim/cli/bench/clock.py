"""Times two pieces of work in turns, so that whatever else the machine does meets both."""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

__all__ = ["Spread", "Timing", "alternate", "fastest", "spread"]

SAMPLE = 0.01  # seconds that one measurement lasts at least: shorter work is repeated within it
LEAST_PAIRS = 3

Key = TypeVar("Key")


class Spread(NamedTuple):
    """Median and quartiles."""

    low: float
    median: float
    high: float


class Timing(NamedTuple):
    """Seconds of one call of each side; the ratio is of neighbouring measurements, the peer's over ours."""

    ours: Spread
    peer: Spread
    ratio: Spread
    pairs: int


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def alternate(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    seconds: float,
    most: int,
    clock: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Measures ours, peer, peer, ours, ours, ... until `seconds` are over or `most` pairs are done; 3 pairs at least.

    The first call of each, which says how many make a measurement, is not counted.
    """
    began = clock()
    calls = [max(1, math.ceil(SAMPLE / max(_seconds(work, 1, clock), 1e-9))) for work in (ours, peer)]
    found: list[tuple[float, float]] = []
    with _collector_at_rest():
        while len(found) < min(LEAST_PAIRS, most) or (len(found) < most and clock() - began < seconds):
            if len(found) % 2:
                second = _seconds(peer, calls[1], clock)
                first = _seconds(ours, calls[0], clock)
            else:
                first = _seconds(ours, calls[0], clock)
                second = _seconds(peer, calls[1], clock)
            found.append((first, second))
    own, others = zip(*found, strict=True)
    return Timing(spread(own), spread(others), spread([b / a for a, b in found]), len(found))


def fastest(candidates: Mapping[Key, Callable[[], Any]]) -> Key:
    """Which of a peer's settings is fastest here: each is called twice, and the second call counts."""
    for work in candidates.values():
        work()
    return min(candidates, key=lambda key: _seconds(candidates[key], 1, time.perf_counter))


def _seconds(work: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    """Of one call."""
    start = clock()
    for _ in range(calls):
        work()
    return max(clock() - start, 1e-9) / calls


@contextmanager
def _collector_at_rest() -> Any:
    """What is there now is not searched for cycles: that takes as long as many measurements, at any moment."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
