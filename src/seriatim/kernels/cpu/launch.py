"""Calls a compiled kernel on tensors, with as many threads as PyTorch uses, and with PyTorch's own.

Work items are handed out one by one, so a slow thread holds nobody up. The threads are those of the OpenMP library that
PyTorch loaded: a second pool would fight with PyTorch's for the cores between every two operations. Where that library
cannot be found, Python's threads do it. A process made by fork has lost those threads, so a kernel there runs on one.
"""

import ctypes
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu import guard
from seriatim.kernels.cpu.library import load

__all__ = ["Kernel", "parallel", "rows", "threads"]

_DTYPES = {"f": torch.float32, "i": torch.int64, "b": torch.bool}
_LINE = 64  # bytes: two threads' memory never shares a cache line
_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = [False]
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forked.__setitem__(0, True))


class Kernel:
    """A kernel of source/<source>.py: `Kernel("double", "double")(items, x, y)`.

    Arguments follow the kernel's own, after (item, scratch): float32, int64 or bool tensors on the CPU whose last
    dimension is contiguous (see `rows`), None for an array that is left out, and numbers.
    """

    def __init__(self, source: str, name: str) -> None:
        self.source, self.name = source, name

    def __call__(self, items: int, *arguments: Tensor | float | None, scratch: int = 0) -> None:
        """Does work items 0 to items - 1. `scratch` is how many float32 of its own memory each thread gets.

        Raises:
            KernelError: the kernel cannot be compiled here.
        """
        if items < 1:
            return
        compiled = load(self.source)[self.name]
        if guard.on():
            with guard.fenced(arguments) as copies:
                self._run(compiled, items, copies, scratch)
        else:
            self._run(compiled, items, arguments, scratch)

    def _run(self, compiled: Any, items: int, arguments: Any, scratch: int) -> None:
        count = min(items, threads())
        size = -(-4 * scratch // _LINE) * _LINE
        memory = torch.empty(count * size + _LINE, dtype=torch.uint8) if scratch else None
        start = 0 if memory is None else -(-memory.data_ptr() // _LINE) * _LINE
        words = [0, items, 0, start, size]
        assert len(arguments) == len(compiled.arguments), f"{self.name} takes {len(compiled.arguments)} arguments"
        for kind, argument in zip(compiled.arguments, arguments, strict=True):
            words += _words(kind, argument)
        packed = struct.pack(f"<{len(words)}q", *words)
        buffer = ctypes.create_string_buffer(packed, len(packed))
        parallel(compiled.address, ctypes.addressof(buffer), count)


def threads() -> int:
    """How many threads a kernel may take: PyTorch's, but one in a process made by fork."""
    return 1 if _forked[0] else torch.get_num_threads()


def rows(tensor: Tensor | None) -> Any:
    """The tensor, copied only if its last dimension is not contiguous."""
    if tensor is None or tensor.stride(-1) == 1 or tensor.size(-1) <= 1:
        return tensor
    return tensor.contiguous()


def _words(kind: str, argument: Tensor | float | None) -> list[int]:
    """An argument as the 8-byte words that the kernel reads it from."""
    if len(kind) == 1:
        return [struct.unpack("<q", struct.pack("<d", argument))[0] if kind == "f" else int(argument)]  # type: ignore[arg-type]
    if argument is None:
        return [0] * (1 + 2 * int(kind[1]))
    assert isinstance(argument, Tensor)
    assert argument.dtype == _DTYPES[kind[0]], f"{kind} was given {argument.dtype}"
    assert argument.ndim == int(kind[1]), f"{kind} was given {argument.ndim} dimensions"
    strides = argument.stride()
    contiguous = strides[-1] == 1 or argument.size(-1) <= 1 or argument.numel() == 0
    assert contiguous, f"the last dimension has stride {strides[-1]}"
    size = argument.element_size()
    return [argument.data_ptr(), *argument.shape, *(size * stride for stride in strides)]


def parallel(entry: int, words: int, count: int) -> None:
    """Runs the entry on `count` threads, this one among them, until the items are done."""
    if count == 1:
        _Entry(entry)(words)
        return
    region = _openmp()
    if region is not None:
        region(entry, words, count, 0)
        return
    others = [_pool().submit(_Entry(entry), words) for _ in range(count - 1)]
    _Entry(entry)(words)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    """Python's threads. A thread that comes late finds no item left, so few of them serve any number of callers."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="seriatim")


@cache
def _openmp() -> Any:
    """The function that starts a parallel region in the OpenMP library PyTorch has loaded, or None."""
    try:
        loaded = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    for path in sorted(
        set(re.findall(r"(/\S*lib(?:gomp|iomp5|omp)[^/\s]*\.so\S*)", loaded)), key=lambda p: "torch" not in p
    ):
        try:
            region = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):
            continue
        region.argtypes, region.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
        return region
    return None
