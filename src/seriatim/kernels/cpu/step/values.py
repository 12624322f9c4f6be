"""Where the values of a program lie: buffers, and views of them with any strides."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seriatim.kernels.cpu.source.step_codes import BOOL, BYTE, FLOAT, HALF, INT, WIDTHS
from seriatim.kernels.cpu.step.trace import Unsupported

__all__ = ["Buffer", "View", "common_sizes", "contiguous", "dense_order", "is_contiguous", "kind_of", "split_strides"]

_KINDS = {torch.float32: FLOAT, torch.int64: INT, torch.bool: BOOL, torch.bfloat16: HALF, torch.int8: BYTE}


def kind_of(dtype: torch.dtype) -> int:
    """How numbers of a dtype lie in memory."""
    if dtype not in _KINDS:
        raise Unsupported(f"dtype {dtype}")
    return _KINDS[dtype]


@dataclass(eq=False)
class Buffer:
    """Memory for `size` numbers of one kind.

    `origin` says whose it is: a tensor that lives on (a parameter, a constant), ("input", i) and ("output", i) of a
    call, or None, the program's own. The program's own holds float32 for truth values, bfloat16 and int8.
    """

    kind: int
    size: int
    origin: Any = None
    is_constant: bool = False  # whether its values are always the same
    pending: Any = None  # the expression that will write it, not yet among the instructions
    writers: int = 0

    @property
    def bytes(self) -> int:
        return WIDTHS[self.kind] * self.size

    @property
    def is_static(self) -> bool:
        """Whether it is memory of a tensor that lives on."""
        return isinstance(self.origin, Tensor)


class View(NamedTuple):
    """Numbers of a buffer; offset and strides count numbers. Reading `logical` truth values gives 0 and 1."""

    buffer: Buffer
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_whole(self) -> bool:
        """Whether the numbers are the buffer's, all of them and in order."""
        return self.offset == 0 and self.size == self.buffer.size and is_contiguous(self.shape, self.stride)

    def expand(self, shape: Sequence[int]) -> "View":
        """The view broadcast to a shape."""
        missing = len(shape) - len(self.shape)
        sizes, strides = (1,) * missing + self.shape, (0,) * missing + self.stride
        if any(size not in (1, wanted) for size, wanted in zip(sizes, shape, strict=True)):
            raise Unsupported(f"{self.shape} does not broadcast to {tuple(shape)}")
        stride = tuple(0 if size == 1 else step for size, step in zip(sizes, strides, strict=True))
        return self._replace(shape=tuple(shape), stride=stride)

    def permute(self, order: Sequence[int]) -> "View":
        """The dimensions in another order."""
        return self._replace(shape=tuple(self.shape[i] for i in order), stride=tuple(self.stride[i] for i in order))

    def narrow(self, dimension: int, start: int, length: int) -> "View":
        """Some indices of a dimension."""
        shape = (*self.shape[:dimension], length, *self.shape[dimension + 1 :])
        return self._replace(offset=self.offset + start * self.stride[dimension], shape=shape)


def contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides of a contiguous tensor."""
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(1, size))
    return tuple(reversed(strides)) if shape else ()


def is_contiguous(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether numbers lie one after another; the strides of single indices do not matter."""
    wanted = contiguous(shape)
    return all(size == 1 or a == b for size, a, b in zip(shape, stride, wanted, strict=True))


def dense_order(shape: Sequence[int], stride: Sequence[int]) -> list[int]:
    """The dimensions from the outermost in memory to the innermost.

    Raises Unsupported if numbers in that order do not lie one after another.
    """
    order = sorted(range(len(shape)), key=lambda i: (-stride[i] if shape[i] > 1 else 0, i))
    real = [i for i in order if shape[i] > 1]
    order = [i for i in range(len(shape)) if shape[i] <= 1] + real
    if not is_contiguous([shape[i] for i in order], [stride[i] for i in order]):
        raise Unsupported(f"a result of shape {tuple(shape)} with strides {tuple(stride)}")
    return order


def common_sizes(first: Sequence[int], second: Sequence[int]) -> list[int] | None:
    """The coarsest sizes of which both are products of neighbours; None where there are none."""
    if 0 in (*first, *second):
        raise Unsupported("a tensor of size 0")
    cuts = sorted(_cuts(first) | _cuts(second))
    if any(b % a for a, b in pairwise(cuts)):
        return None
    return [b // a for a, b in pairwise(cuts)][::-1]


def _cuts(sizes: Sequence[int]) -> set[int]:
    """The products of the last 0, 1, 2, ... sizes."""
    found = {1}
    total = 1
    for size in reversed(sizes):
        total *= size
        found.add(total)
    return found


def split_strides(sizes: Sequence[int], strides: Sequence[int], finer: Sequence[int]) -> tuple[int, ...]:
    """Strides along `sizes` as strides along `finer` ones, of whose neighbours they are products."""
    found: list[int] = []
    parts = list(finer)
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        along = stride
        while size > 1:
            part = parts.pop()
            found.append(along)
            along *= part
            size //= part
    return tuple(reversed(found))
