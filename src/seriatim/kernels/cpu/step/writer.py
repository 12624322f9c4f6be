"""Writing instructions down: elementwise functions wait in expressions, to be joined by others, until a result is
needed.

Pending expressions never depend on one another: what reads a result of one either joins it or makes an instruction of
it.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from seriatim.kernels.cpu.source.step_codes import FLOAT, INT
from seriatim.kernels.cpu.step.expressions import Expression
from seriatim.kernels.cpu.step.formulas import Formula, Functions, Value
from seriatim.kernels.cpu.step.instructions import Instruction
from seriatim.kernels.cpu.step.strips import Strips
from seriatim.kernels.cpu.step.trace import Unsupported
from seriatim.kernels.cpu.step.values import Buffer, View, common_sizes, contiguous, kind_of, split_strides

__all__ = ["Writer"]

MOST_JOINED = 24  # values of two expressions that are made one


class Writer:
    """The instructions so far, and what is pending."""

    def __init__(self) -> None:
        self.instructions: list[Instruction | Expression] = []
        self.pending: list[Expression] = []

    def elementwise(
        self,
        formula: Formula,
        arguments: Sequence[Any],
        options: dict[str, Any] | None = None,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        order: Sequence[int] | None = None,
    ) -> View:
        """A buffer with the results of a formula on views and numbers, over `shape` with its dimensions in an order."""
        views = [z for z in arguments if isinstance(z, View)]
        shape = torch.broadcast_shapes(*(z.shape for z in views)) if shape is None else shape
        order = range(len(shape)) if order is None else order
        sizes = [shape[i] for i in order]
        if any(size == 0 for size in sizes):
            raise Unsupported("a tensor of size 0")
        views = [z.expand(shape).permute(order) for z in views]
        expression = self._open(sizes, views)
        values = iter([self._value(expression, sizes, z) for z in views])
        if dtype == torch.int8:
            raise Unsupported("arithmetic in int8")
        kind = INT if kind_of(dtype) == INT else FLOAT
        functions = Functions(expression, kind, dtype == torch.bool)
        found = formula(functions, *(next(values) if isinstance(z, View) else z for z in arguments), **(options or {}))
        if found.kind != kind:
            raise Unsupported(f"a formula with a result of {dtype}")
        result = View(Buffer(kind, prod(sizes), pending=expression), 0, tuple(sizes), contiguous(sizes))
        expression.write(found.place, _flat(result, expression.sizes))
        expression.of_buffer[result.buffer] = found.place
        return result.permute(_inverse(order))

    def _value(self, expression: Expression, sizes: Sequence[int], view: View) -> Value:
        """A view's numbers as a value of the expression."""
        buffer = view.buffer
        if buffer.pending is expression:
            index = expression.of_buffer[buffer]
            return Value(index, expression.kinds[index])
        if buffer.is_constant and buffer.size == 1:
            kind = INT if buffer.kind == INT else FLOAT
            return Value(expression.constant(buffer.origin.as_strided((), (), 0).item(), kind), kind)
        index = expression.operand(buffer, view.offset, split_strides(sizes, view.stride, expression.sizes))
        return Value(index, expression.kinds[index])

    def _open(self, sizes: Sequence[int], views: Sequence[View]) -> Expression:
        """A pending expression over the sizes or finer ones; every other that the views need is flushed."""
        joined: Expression | None = None
        for view in views:
            waiting = view.buffer.pending
            if waiting is None or waiting is joined:
                if waiting is not None and not view.is_whole:
                    self.flush(waiting)
                    joined = None
                continue
            finer = common_sizes(waiting.sizes, sizes if joined is None else joined.sizes)
            finer = None if finer is None else common_sizes(finer, sizes)
            if not view.is_whole or finer is None or waiting.is_full:
                self.flush(waiting)
            elif joined is None:
                joined = waiting
                joined.refine(finer)
            elif len(joined.values) + len(waiting.values) < MOST_JOINED:
                joined.refine(finer)
                waiting.refine(finer)
                joined.merge(waiting)
                self.pending.remove(waiting)
            else:
                self.flush(waiting)
        if joined is None:
            joined = Expression(common_sizes(sizes, sizes) or [])
            self.pending.append(joined)
        return joined

    def flush(self, expression: Expression) -> None:
        """Makes a pending expression an instruction."""
        self.pending.remove(expression)
        self.instructions.append(expression)
        for buffer in expression.of_buffer:
            buffer.pending = None

    def ready(self, view: View) -> View:
        """The view, its numbers in memory."""
        if view.buffer.pending is not None:
            self.flush(view.buffer.pending)
        return view

    def emit(self, instruction: Instruction) -> None:
        """Adds an instruction whose operands are ready."""
        self.instructions.append(instruction)

    def fresh(self, shape: Sequence[int], kind: int = FLOAT) -> View:
        """Contiguous memory of the program's own."""
        shape = tuple(shape)
        if prod(shape) == 0:
            raise Unsupported("a tensor of size 0")
        return View(Buffer(kind, prod(shape)), 0, shape, contiguous(shape))

    def copy(self, view: View) -> View:
        """A contiguous copy; all but int64 become float32."""
        dtype = torch.int64 if view.buffer.kind == INT else torch.float32
        return self.elementwise(lambda f, x: x, [view], dtype=dtype)

    def plain(self, view: View) -> View:
        """The view, in float32 and in memory."""
        if view.buffer.kind == INT:
            raise Unsupported("a product or a sum of integers")
        return self.ready(view if view.buffer.kind == FLOAT else self.copy(view))

    def write(self, source: View, target: View) -> None:
        """Copies into memory that is written in parts."""
        sizes = list(target.shape)
        source = source.expand(sizes)
        expression = self._open(sizes, [source]) if source.is_whole else Expression(common_sizes(sizes, sizes) or [])
        if expression not in self.pending:
            self.ready(source)
            self.pending.append(expression)
        value = self._value(expression, sizes, source)
        stride = split_strides(sizes, target.stride, expression.sizes)
        expression.write(value.place, View(target.buffer, target.offset, tuple(expression.sizes), stride))
        target.buffer.writers += 1

    def written(self, target: View) -> None:
        """Makes instructions of all that waits to be written into memory that is written in parts."""
        for expression in list(self.pending):
            if any(result.target.buffer is target.buffer for result in expression.results):
                self.flush(expression)

    def finish(self, outputs: Sequence[Buffer]) -> list[Instruction]:
        """The instructions on which the outputs depend."""
        for expression in list(self.pending):
            self.flush(expression)
        needed, kept = set(outputs), list[Instruction]()
        for instruction in reversed(self.instructions):
            if isinstance(instruction, Expression):
                instruction.results = [z for z in instruction.results if z.target.buffer in needed]
                if not instruction.results:
                    continue
                instruction = Strips(instruction)
            elif not any(buffer in needed for buffer in instruction.writes):
                continue
            needed.update(instruction.reads)
            kept.append(instruction)
        return kept[::-1]


def _flat(view: View, sizes: Sequence[int]) -> View:
    """Contiguous numbers, along other sizes."""
    return view._replace(shape=tuple(sizes), stride=contiguous(sizes))


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=lambda i: order[i])
