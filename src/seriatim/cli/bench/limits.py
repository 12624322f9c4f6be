"""What this machine can do at most, measured in the run that is judged by it.

peak: float32 operations a second, by the micro-kernel that our products are made of, on matrices that stay in the first
level cache, or by PyTorch's own product where that is faster or the kernels cannot be compiled. bandwidth: bytes read
and written a second by a copy that no cache holds. cache_bandwidth: by a copy that the second level caches hold.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from seriatim.cli.memory import available_memory

__all__ = ["Limits", "best", "measure_limits"]

CACHED = 256 * 1024  # bytes of each thread's part of a small copy, read and written
LARGE = 1 << 30
SIZES = (32, 48, 64, 96)  # of the micro-kernel's matrices; three of them stay in the cache
ROUNDS = 25  # short ones, so that one of them is undisturbed


class Limits(NamedTuple):
    """Operations and bytes a second."""

    peak: float
    peak_by: str
    bandwidth: float
    cache_bandwidth: float


def measure_limits() -> Limits:
    """With as many threads as PyTorch uses: a few seconds."""
    peak, by = max(_micro_kernel(), _library())
    threads = torch.get_num_threads()
    large = min(LARGE, available_memory(torch.device("cpu")) // 8 or LARGE)
    return Limits(peak, by, _copy(large, ROUNDS // 5), _copy(2 * CACHED * threads, ROUNDS))


def best(first: Limits, second: Limits) -> Limits:
    """The larger of two measurements of each limit: a disturbance only makes one smaller."""
    peak, by = max((first.peak, first.peak_by), (second.peak, second.peak_by))
    bandwidth = max(first.bandwidth, second.bandwidth)
    return Limits(peak, by, bandwidth, max(first.cache_bandwidth, second.cache_bandwidth))


def _micro_kernel() -> tuple[float, str]:
    from seriatim.kernels.cpu.launch import Kernel
    from seriatim.kernels.cpu.library import KernelError

    kernel, items, found = Kernel("probe", "peak"), 8 * torch.get_num_threads(), 0.0  # several a thread, to balance
    try:
        for size in SIZES:
            repeats = max(1, int(6e7 / (2 * size**3)))
            seconds = _shortest(partial(kernel, items, repeats, size, scratch=3 * size * size))
            found = max(found, items * repeats * 2 * size**3 / seconds)
    except KernelError:
        pass  # there was a warning, or there will be at the first op
    return found, "our micro-kernel"


def _library() -> tuple[float, str]:
    found = 0.0
    for size in (256, 512, 1024):
        a, b, c = (torch.randn(size, size) for _ in range(3))
        repeats = max(1, 512**3 // size**3)
        product = partial(torch.mm, a, b, out=c)
        found = max(found, repeats * 2 * size**3 / _shortest(product, repeats))
    return found, "PyTorch's product"


def _copy(total: int, rounds: int) -> float:
    """Bytes a second, of `total` bytes read or written by one copy."""
    source = torch.zeros(total // 8)
    target = torch.zeros_like(source)
    repeats = max(1, LARGE // 16 // total)
    return repeats * 2 * source.nbytes / _shortest(partial(target.copy_, source), repeats, rounds)


def _shortest(work: Callable[[], Any], calls: int = 1, rounds: int = ROUNDS) -> float:
    """Seconds of so many calls, the shortest of several times."""
    work()
    found = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        found = min(found, time.perf_counter() - start)
    return found
