"""A debug mode that finds reads and writes outside an array: SERIATIM_GUARD=1, or `with guard.guarded():`.

Every array of a launch is copied so that it ends where a page begins that may not be touched; in the second mode
(SERIATIM_GUARD=before) it begins where such a page ends. The compiled code itself runs, vector loads included; a single
byte out of bounds ends the process with a segmentation fault instead of going unnoticed.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["fenced", "guarded", "on"]

_PAGE = mmap.PAGESIZE
_mode = [os.environ.get("SERIATIM_GUARD") or None]


def on() -> bool:
    """Whether launches are guarded."""
    return _mode[0] is not None


@contextmanager
def guarded(mode: str = "after") -> Iterator[None]:
    """Launches inside this block are guarded: "after" fences the ends of arrays, "before" their beginnings."""
    outside, _mode[0] = _mode[0], mode
    try:
        yield
    finally:
        _mode[0] = outside


@contextmanager
def fenced(arguments: Any) -> Iterator[list[Any]]:
    """The arguments with every tensor copied to fenced memory, and back afterwards."""
    copies = [_Fenced(z) if isinstance(z, Tensor) and z.numel() else None for z in arguments]
    yield [z if copy is None else copy.tensor for z, copy in zip(arguments, copies, strict=True)]
    for copy in copies:
        if copy is not None:
            copy.give_back()


class _Fenced:
    """A copy of the memory that a tensor spans, next to a page that may not be touched."""

    def __init__(self, original: Tensor) -> None:
        span = 1 + sum((size - 1) * stride for size, stride in zip(original.shape, original.stride(), strict=True))
        self.original, self.bytes = original, span * original.element_size()
        pages = -(-self.bytes // _PAGE) * _PAGE
        self.memory = mmap.mmap(-1, pages + 2 * _PAGE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for place in (base, base + _PAGE + pages):
            if _libc().mprotect(ctypes.c_void_p(place), ctypes.c_size_t(_PAGE), 0) != 0:
                raise OSError("mprotect failed")
        self.base, self.length = base, pages + 2 * _PAGE
        begin = _PAGE if _mode[0] == "before" else _PAGE + pages - self.bytes
        self.place = base + begin
        ctypes.memmove(self.place, original.data_ptr(), self.bytes)
        flat = torch.frombuffer(self.memory, dtype=original.dtype, count=span, offset=begin)
        self.tensor = flat.as_strided(original.shape, original.stride())

    def give_back(self) -> None:
        repeated = any(
            stride == 0 and size > 1 for stride, size in zip(self.tensor.stride(), self.tensor.shape, strict=True)
        )
        if not repeated:  # what is read over and over is not written
            # Only what belongs to it: what lies between may be another's. By .data, since for autograd an input that
            # gets back what it held has not changed.
            self.original.data.copy_(self.tensor)
        for place in (self.base, self.base + self.length - _PAGE):
            _libc().mprotect(ctypes.c_void_p(place), ctypes.c_size_t(_PAGE), mmap.PROT_READ | mmap.PROT_WRITE)


def _libc() -> Any:
    return ctypes.CDLL(None)
