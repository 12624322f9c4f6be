"""Room for large results on large pages.

Fresh memory costs a page fault for every 4 KB that a kernel writes, which takes longer than many a kernel. Asked for
pages of 2 MB, Linux faults once for each of these. Elsewhere, and where it has none, memory is as it always was.
"""

import ctypes
import mmap
from functools import cache
from typing import Any

from torch import Tensor

__all__ = ["room"]

_LARGE = 4 << 20  # bytes: what is smaller comes from memory that the process has used before


def room(like: Tensor, *shape: int) -> Tensor:
    """An uninitialised tensor of that shape, with the dtype and device of `like`."""
    tensor = like.new_empty(shape)
    size = tensor.numel() * tensor.element_size()
    if size >= _LARGE and _madvise() is not None:
        begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        _madvise()(begin, tensor.data_ptr() + size - begin, mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _madvise() -> Any:
    """The system's function, or None where pages have one size. It changes no memory, and may fail without harm."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    found = ctypes.CDLL(None).madvise
    found.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return found
