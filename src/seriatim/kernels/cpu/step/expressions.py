"""Elementwise functions gathered into expressions, as long as they run over the same numbers in the same order.

An expression runs over `sizes`; its results are buffers, contiguous in that order. A value that only the expression
itself uses is never written to memory. An expression is pending until something else needs a result of it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from seriatim.kernels.cpu.source.step_codes import FLOAT, INT, SLOTS
from seriatim.kernels.cpu.step.trace import Unsupported
from seriatim.kernels.cpu.step.values import Buffer, View, split_strides

__all__ = ["Constant", "Expression", "Function", "Operand", "Result"]

MOST_VALUES = SLOTS // 2


class Operand(NamedTuple):
    """Numbers read from memory; strides along the expression's sizes."""

    buffer: Buffer
    offset: int
    stride: tuple[int, ...]


class Constant(NamedTuple):
    """One number."""

    value: float
    kind: int


class Function(NamedTuple):
    """An elementwise function of values given by their indices."""

    name: str
    arguments: tuple[int, ...]


class Result(NamedTuple):
    """A value that is written to memory."""

    value: int
    target: Operand


class Expression:
    """Values in the order in which they are computed: operands, constants, functions; and the results."""

    def __init__(self, sizes: Sequence[int]):
        self.sizes = list(sizes)
        self.values: list[Operand | Constant | Function] = []
        self.kinds: list[int] = []  # FLOAT or INT
        self.results: list[Result] = []
        self.known: dict[Any, int] = {}
        self.of_buffer: dict[Buffer, int] = {}  # buffers that it will write whole, and the value of each

    def refine(self, finer: Sequence[int]) -> None:
        """Expresses all strides along finer sizes."""
        if list(finer) == self.sizes:
            return
        old, self.sizes, self.known = self.sizes, list(finer), {}
        for index, value in enumerate(self.values):
            if isinstance(value, Operand):
                self.values[index] = value._replace(stride=split_strides(old, value.stride, finer))
        self.results = [
            Result(value, target._replace(stride=split_strides(old, target.stride, finer)))
            for value, target in self.results
        ]

    def _add(self, value: Operand | Constant | Function, kind: int) -> int:
        if value not in self.known:
            self.known[value] = len(self.values)
            self.values.append(value)
            self.kinds.append(kind)
        return self.known[value]

    def operand(self, buffer: Buffer, offset: int, stride: Sequence[int]) -> int:
        """The index of numbers in memory."""
        if buffer in self.of_buffer:
            raise Unsupported("an expression that reads its own result in another order")
        return self._add(Operand(buffer, offset, tuple(stride)), INT if buffer.kind == INT else FLOAT)

    def constant(self, value: float, kind: int) -> int:
        """The index of a number."""
        value = int(value) if kind == INT else float(value)
        return self._add(Constant(value, kind) if value == value else Constant(float("nan"), kind), kind)

    def function(self, name: str, kind: int, *arguments: int) -> int:
        """The index of an elementwise function's value."""
        return self._add(Function(name, arguments), kind)

    def write(self, value: int, target: View) -> None:
        """Makes a value a result, in memory laid out along the expression's sizes."""
        self.results.append(Result(value, Operand(target.buffer, target.offset, target.stride)))

    def merge(self, other: "Expression") -> dict[int, int]:
        """Takes over another expression over the same sizes. Returns its values' indices here."""
        moved: dict[int, int] = {}
        for index, value in enumerate(other.values):
            if isinstance(value, Function):
                value = value._replace(arguments=tuple(moved[i] for i in value.arguments))
            moved[index] = self._add(value, other.kinds[index])
        self.results += [Result(moved[value], target) for value, target in other.results]
        self.of_buffer |= {buffer: moved[value] for buffer, value in other.of_buffer.items()}
        for buffer in other.of_buffer:
            buffer.pending = self
        return moved

    @property
    def is_full(self) -> bool:
        """Whether no more should be added: each value may need a slot of its own."""
        return len(self.values) > MOST_VALUES
