"""What a token costs as the text grows: reading 1k to 8k tokens, and one step at position 100 and at position 8k.

    python benchmarks/constant_cost.py [mixer ...]

Every mixer alone, dim 128, one row, float32. The lengths are read in turn, several times; a ratio is that of the
medians, so 1.0 means that a token costs the same however much came before. Attention, whose cache grows, stands
beside for comparison.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

import seriatim as sq
from seriatim.core.mixer import Mixer

LENGTHS = (1_024, 2_048, 4_096, 8_192)
POSITIONS = (100, 8_192)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def reading(mixer: Mixer, runs: int) -> list[float]:
    """Median microseconds a token for each length."""
    inputs = [torch.randn(1, length, mixer.dim) for length in LENGTHS]
    times: list[list[float]] = [[] for _ in LENGTHS]
    for run in range(runs + 1):
        for x, kept in zip(inputs, times, strict=True):
            taken = seconds(lambda x=x: mixer(x)) / x.size(1)
            if run:  # the first is a warm-up
                kept.append(1e6 * taken)
    return [statistics.median(kept) for kept in times]


def stepping(mixer: Mixer, steps: int = 200) -> list[float]:
    """Median microseconds of a step from each position, the positions taking turns."""
    states = [mixer(torch.randn(1, position, mixer.dim))[1] for position in POSITIONS]
    x = torch.randn(1, mixer.dim)
    times: list[list[float]] = [[] for _ in POSITIONS]
    for _ in range(steps):
        for state, kept in zip(states, times, strict=True):
            kept.append(1e6 * seconds(lambda state=state: mixer.step(x, state)))
    return [statistics.median(kept) for kept in times]


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for name in sq.names() if name != "stack"]
    parser.add_argument("mixers", nargs="*", default=known, help="all of them by default")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    table = Table("mixer", *(f"{n:,}" for n in LENGTHS), "8k / 1k", *(f"step at {n:,}" for n in POSITIONS), "ratio")
    for name in options.mixers:
        torch.manual_seed(0)
        mixer = sq.build(name, dim=128).eval()
        read, step = reading(mixer, options.runs), stepping(mixer)
        cells = [
            *(f"{t:.1f}" for t in read),
            f"{read[-1] / read[0]:.2f}",
            *(f"{t:.0f}" for t in step),
            f"{step[1] / step[0]:.2f}",
        ]
        table.add_row(name if mixer.constant_state else f"{name} (grows)", *cells)
    Console().print("microseconds a token, and a step", table)


if __name__ == "__main__":
    main()
