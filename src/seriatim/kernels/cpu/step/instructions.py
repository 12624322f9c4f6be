"""The instructions of a program, before they are words: what each reads and writes, what it costs, how it is written
down.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from seriatim.kernels.cpu.source.step_codes import (
    GATHER,
    PRODUCT,
    QUANTIZED,
    REDUCTION,
    REDUCTIONS,
    WHOLE,
    WHOLE_NIBBLES,
    WIDTHS,
)
from seriatim.kernels.cpu.step.values import Buffer, View

__all__ = ["Fetch", "Instruction", "Places", "Product", "Quantized", "Reduction", "bits", "steps"]

# From a buffer and an offset in bytes to the two words of a place.
Places: TypeAlias = Callable[[Buffer, int], list[int]]


def bits(number: float) -> int:
    """A float32's bits."""
    return struct.unpack("<I", struct.pack("<f", number))[0]


def steps(view: View) -> list[int]:
    """Strides in bytes."""
    return [WIDTHS[view.buffer.kind] * stride for stride in view.stride]


@dataclass(eq=False)
class Instruction(ABC):
    """One instruction. `cost` is the time it takes, as bytes of memory that could be read meanwhile."""

    reads: list[Buffer] = field(default_factory=list)
    writes: list[Buffer] = field(default_factory=list)
    cost: float = 0.0
    registers: int = 0  # bytes of the thread's own memory that it needs

    @abstractmethod
    def words(self, places: Places) -> list[int]:
        """Code and fields, without the length and the ticket, which stand in between."""


def _place(view: View, places: Places) -> list[int]:
    return places(view.buffer, WIDTHS[view.buffer.kind] * view.offset)


class Product(Instruction):
    """out = alpha a b + beta added, out contiguous: a (B0, B1, M, K), b (B0, B1, K, N), added (B0, B1, M, N)."""

    def __init__(self, kind: int, a: View, b: View, out: View, added: View | None, alpha: float, beta: float):
        *batch, rows, inner = a.shape
        columns = b.shape[-1]
        used = [a, b] if added is None else [a, b, added]
        read = WIDTHS[b.buffer.kind] * inner * columns * max(1.0, rows / 4)
        super().__init__([view.buffer for view in used], [out.buffer], batch[0] * batch[1] * read)
        self.kind, self.a, self.b, self.out, self.added = kind, a, b, out, added
        self.sizes, self.alpha, self.beta = [*batch, rows, columns, inner], alpha, beta

    def words(self, places: Places) -> list[int]:
        added = [-1, 0, 0, 0, 0, 0]
        if self.added is not None:
            added = [*_place(self.added, places), *steps(self.added)]
        return [
            *(PRODUCT, self.kind, self.b.buffer.kind, *self.sizes),
            *(*_place(self.a, places), *steps(self.a), *_place(self.b, places), *steps(self.b)),
            *(*_place(self.out, places), *added, bits(self.alpha), bits(self.beta)),
        ]


class Quantized(Instruction):
    """out = x weight^T, out (M, N) contiguous: x (M, K), weight (N, bytes) of a kind of weights, scale (N, groups).

    `group` numbers of a row of weights share a scale.
    """

    def __init__(self, kind: int, x: View, weight: View, scale: View, out: View, group: int):
        used, rows = [x, weight, scale], x.shape[0]
        super().__init__([z.buffer for z in used], [out.buffer], 1.0 * weight.size * max(2.0, rows / 2))
        self.kind, self.x, self.weight, self.scale, self.out, self.group = kind, x, weight, scale, out, group
        self.is_whole = kind in (WHOLE, WHOLE_NIBBLES)
        if self.is_whole:  # the thread's own copy of x as bytes, each row filled up to 128
            self.registers = rows * -(-x.shape[1] // 128) * 128

    def words(self, places: Places) -> list[int]:
        (rows, inner), columns = self.x.shape, self.weight.shape[0]
        return [
            *(QUANTIZED, self.kind, rows, columns, inner, self.group),
            *(*_place(self.x, places), steps(self.x)[0], *_place(self.weight, places), steps(self.weight)[0]),
            *(*_place(self.out, places), *_place(self.scale, places), steps(self.scale)[0]),
        ]


class Reduction(Instruction):
    """out (D0, D1, D2), contiguous, from x (D0, D1, D2, R0, R1), times a factor."""

    def __init__(self, name: str, x: View, out: View, factor: float = 1.0):
        super().__init__([x.buffer], [out.buffer], 4.0 * x.size * (1 if x.stride[-1] == 1 or x.stride[2] == 1 else 8))
        self.name, self.x, self.out, self.factor = name, x, out, factor

    def words(self, places: Places) -> list[int]:
        sizes, strides = list(self.x.shape), steps(self.x)
        return [
            *(REDUCTION, REDUCTIONS[self.name], bits(self.factor)),
            *(*_place(self.out, places), *_place(self.x, places)),
            *(*sizes[:3], *strides[:3], *sizes[3:], *strides[3:]),
        ]


class Fetch(Instruction):
    """out[i] = table[indices[i]], rows of contiguous numbers."""

    def __init__(self, table: View, indices: View, out: View, wraps: bool):
        super().__init__([table.buffer, indices.buffer], [out.buffer], 4.0 * out.size)
        self.table, self.indices, self.out, self.wraps = table, indices, out, wraps

    def words(self, places: Places) -> list[int]:
        (count,), (limit, columns) = self.indices.shape, self.table.shape
        return [
            *(GATHER, count, columns, self.table.buffer.kind),
            *(*_place(self.out, places), *_place(self.table, places), *_place(self.indices, places)),
            *(steps(self.table)[0], limit, steps(self.indices)[0], int(self.wraps)),
        ]
