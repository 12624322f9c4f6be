"""Room for large results: on large pages, and used again.

Fresh memory costs a page fault for every 4 KB that a kernel writes, which takes longer than many a kernel. Asked for
pages of 2 MB, Linux faults once for each of these. From 32 MB on the C library gives all memory back to the system as
soon as it is free and asks for new memory next time, so what is that large is kept here, for the next result.
"""

import ctypes
import mmap
import threading
import weakref
from collections import deque
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["release", "room"]

_LARGE = 4 << 20  # bytes: what is smaller comes from memory that the process has used before
_KEEP = 32 << 20  # bytes from which the C library keeps nothing
_MOST = 1 << 30  # bytes kept that nobody uses
_PAGE = 2 << 20

_free: deque[mmap.mmap] = deque()
_taking = threading.Lock()


def room(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of that shape, with the dtype and device of `like`."""
    if type(like) not in (Tensor, nn.Parameter):  # such as the tensors without memory of a compiler
        return like.new_empty(shape)
    size = like.element_size()
    for length in shape:
        size *= length
    if size < _LARGE or _madvise() is None:
        return like.new_empty(shape)
    if size >= _KEEP:
        block = _block(size)
        found = np.frombuffer(block, np.uint8)
        weakref.finalize(found, _give_back, block).atexit = False  # when no tensor uses it any more
        return torch.frombuffer(found, dtype=like.dtype, count=size // like.element_size()).view(shape)
    tensor = like.new_empty(shape)
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    _madvise()(begin, tensor.data_ptr() + size - begin, mmap.MADV_HUGEPAGE)
    return tensor


def release() -> None:
    """Gives the memory that is kept for later results back to the system."""
    with _taking:
        _free.clear()


def _block(size: int) -> mmap.mmap:
    """The smallest kept block of at least so many bytes, or a new one. One of more than twice the size stays."""
    with _taking:
        fitting = [block for block in _free if size <= len(block) <= 2 * size]
        if fitting:
            block = min(fitting, key=len)
            _free.remove(block)
            return block
    block = mmap.mmap(-1, -(-size // _PAGE) * _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.madvise(mmap.MADV_HUGEPAGE)
    return block


def _give_back(block: mmap.mmap) -> None:
    """May be called in any thread, at any moment: takes no lock."""
    if sum(map(len, list(_free))) + len(block) <= _MOST:
        _free.append(block)


@cache
def _madvise() -> Any:
    """The system's function, or None where pages have one size. It changes no memory, and may fail without harm."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
