"""From a trace to instructions: operators become instructions over buffers, views become strides."""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from seriatim.kernels.cpu.source.step_codes import FLOAT, INT
from seriatim.kernels.cpu.step import products, rows
from seriatim.kernels.cpu.step.formulas import FORMULAS
from seriatim.kernels.cpu.step.instructions import Instruction
from seriatim.kernels.cpu.step.trace import Call, Reference, Trace, Unsupported
from seriatim.kernels.cpu.step.values import Buffer, View, contiguous, dense_order, is_contiguous, kind_of
from seriatim.kernels.cpu.step.writer import Writer

__all__ = ["lower"]


def lower(trace: Trace) -> list[Instruction]:
    """The instructions that make the outputs from the inputs, whose buffers are named so.

    Raises:
        Unsupported: an operator has no instruction.
    """
    lowering = _Lowering(trace)
    for call in trace.calls:
        lowering.call(call)
    outputs = [lowering.output(index, found) for index, found in enumerate(trace.outputs)]
    return lowering.writer.finish(outputs)


class _Lowering:
    """Which buffer each memory of the trace is, as the calls go by."""

    def __init__(self, trace: Trace):
        self.trace, self.writer = trace, Writer()
        self.buffers: dict[int, Buffer] = {}
        self.constant = set(trace.made)  # memory whose values depend on nothing
        self.changed = {memory for call in trace.calls for memory in call.written}
        for index, found in enumerate(trace.inputs):
            self.buffers[found.memory] = Buffer(kind_of(found.dtype), _numbers(found), ("input", index))

    def call(self, call: Call) -> None:
        """Adds what an operator does."""
        given = _references(call.arguments)
        fresh = [z for z in call.outputs if z.memory not in self.buffers and z.memory not in {y.memory for y in given}]
        if not call.written and (not fresh or call.outputs[0].memory in self.trace.made):
            return  # a view; or a constant, that is there already
        if not call.written and given and all(z.memory in self.constant - self.changed for z in given):
            self.constant |= {z.memory for z in call.outputs}
            return
        name = call.operator._schema.name.removeprefix("aten::")
        functional = name.rstrip("_") if call.written and name.endswith("_") else name
        try:
            self._add(name, functional, call)
        except TypeError as error:  # an argument that its handler does not know
            raise Unsupported(f"{call.operator}: {error}") from None

    def _add(self, name: str, functional: str, call: Call) -> None:
        """Adds an operator's instructions, by its name and its name without the mark of working in place."""
        arguments, options = self._split(call)
        handler = products.OPERATORS.get(name) or rows.OPERATORS.get(name)
        if functional in FORMULAS:
            self._elementwise(functional, call, arguments, options)
            return
        if handler is None or call.written:
            raise Unsupported(f"{call.operator}")
        found = handler(self.writer, *arguments, **options)
        for made, view in zip(call.outputs, found if type(found) is tuple else (found,), strict=False):
            self.bind(made, view)

    def _split(self, call: Call) -> tuple[list[Any], dict[str, Any]]:
        """Positional arguments and options, with views for references."""
        arguments, options = [], {}
        for argument in call.operator._schema.arguments:
            if argument.name not in call.arguments:
                continue
            value = self._views(call.arguments[argument.name])
            if argument.kwarg_only:
                options[argument.name] = value
            else:
                arguments.append(value)
        return arguments, options

    def _views(self, value: Any) -> Any:
        if isinstance(value, Reference):
            return self.view(value)
        return [self._views(part) for part in value] if isinstance(value, list) else value

    def view(self, found: Reference) -> View:
        """Where the numbers of a tensor are."""
        if found.memory not in self.buffers:
            if found.memory in self.trace.made and found.memory in self.changed:
                self.buffers[found.memory] = self._copied(self.trace.made[found.memory])
            else:
                origin = self.trace.kept[found.memory]
                size = origin.untyped_storage().nbytes() // origin.element_size()
                constant = found.memory in self.constant
                self.buffers[found.memory] = Buffer(kind_of(origin.dtype), size, origin, constant)
        buffer = self.buffers[found.memory]
        if buffer.origin is not None and kind_of(found.dtype) != buffer.kind:
            raise Unsupported("memory read as another dtype")
        return View(buffer, found.offset, found.shape, found.stride)

    def _copied(self, made: Tensor) -> Buffer:
        """Memory of the program's own that begins as a constant."""
        source = View(Buffer(kind_of(made.dtype), made.numel(), made), 0, (made.numel(),), (1,))
        return self.writer.copy(source).buffer

    def _elementwise(self, name: str, call: Call, arguments: list[Any], options: dict[str, Any]) -> None:
        target = call.outputs[0]
        order = dense_order(target.shape, target.stride) if not call.written else None
        view = self.writer.elementwise(FORMULAS[name], arguments, options, target.shape, target.dtype, order)
        if call.written:
            self._replace(target, view)
        else:
            self.bind(target, view)

    def bind(self, found: Reference, view: View) -> None:
        """Says that a tensor of the trace is what a view holds."""
        if found.memory in self.buffers and found.memory not in self.changed:
            raise Unsupported("memory that an operator made twice")
        numbers = self.trace.kept[found.memory].untyped_storage().nbytes() // found.dtype.itemsize
        if found.offset or _numbers(found) != numbers or (kind_of(found.dtype) == INT) != (view.buffer.kind == INT):
            raise Unsupported("a result that is part of its memory")
        order = dense_order(found.shape, found.stride)
        laid = view._replace(shape=found.shape) if view.shape == found.shape else _reshaped(view, found.shape)
        if not laid.permute(order).is_whole or laid.buffer.origin is not None or laid.buffer.kind not in (FLOAT, INT):
            laid = self.writer.elementwise(lambda f, x: x, [laid], None, found.shape, found.dtype, order)
        self.buffers[found.memory] = laid.buffer

    def _replace(self, target: Reference, view: View) -> None:
        """Gives a tensor new values: its memory is another buffer from now on."""
        old = self.view(target)
        if old.buffer.origin is not None:
            raise Unsupported("a step that changes its input or a parameter")
        if _numbers(target) == old.buffer.size and not target.offset:
            order = dense_order(target.shape, target.stride)
            laid = self.writer.elementwise(lambda f, x: x, [view], None, target.shape, target.dtype, order)
            self.buffers[target.memory] = laid.buffer
            return
        copied = self.writer.ready(self.writer.copy(View(old.buffer, 0, (old.buffer.size,), (1,))))
        copied.buffer.writers += 1
        self.writer.write(view, old._replace(buffer=copied.buffer))
        self.writer.written(copied)
        self.buffers[target.memory] = copied.buffer

    def output(self, index: int, found: Reference) -> Buffer:
        """The buffer of an output, contiguous and nobody else's."""
        view, kind = self.view(found), kind_of(found.dtype)
        if view.size == 0:
            return Buffer(kind, 0, ("output", index))
        own = view.buffer.origin is None and view.buffer.kind == kind and view.buffer.writers == 0
        if not (own and view.is_whole):
            target = Buffer(kind, view.size)
            self.writer.write(view, View(target, 0, found.shape, contiguous(found.shape)))
            target.writers = 0
            view = View(target, 0, found.shape, contiguous(found.shape))
        view.buffer.origin = ("output", index)
        return view.buffer


def _reshaped(view: View, shape: Sequence[int]) -> View:
    """A contiguous view with another shape of as many numbers."""
    if view.size != prod(shape) or not is_contiguous(view.shape, view.stride):
        raise Unsupported(f"a result of shape {view.shape} where {tuple(shape)} is wanted")
    return view._replace(shape=tuple(shape), stride=contiguous(shape))


def _references(value: Any) -> list[Reference]:
    if isinstance(value, Reference):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for part in value for found in _references(part)] if isinstance(value, list | tuple) else []


def _numbers(found: Reference) -> int:
    return prod(found.shape)
