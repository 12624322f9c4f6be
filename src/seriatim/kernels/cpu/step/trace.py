"""What a step asks of PyTorch: every operator it calls, with which tensors, recorded while it runs.

The step runs for real, once. Its tensors are told apart by their memory: a view is the memory of another tensor with
other strides, and needs no instruction later. A parameter is recognised as itself, not as a copy.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["Call", "Reference", "Trace", "Unsupported", "record", "reference"]


class Unsupported(Exception):  # noqa: N818 (not an error: the step runs as it always did)
    """The step cannot become a program; the message says why."""


class Reference(NamedTuple):
    """A tensor as it was when it was used: the address of its memory, where it begins there, its shape and strides."""

    memory: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Call(NamedTuple):
    """One operator's call. `arguments` are by name, with tensors as references."""

    operator: Any
    arguments: dict[str, Any]
    outputs: list[Reference]
    written: frozenset[int]  # memory that it changed


class Trace(NamedTuple):
    """All calls of a step; `kept` holds a tensor for all memory that occurs, so that no address occurs twice."""

    calls: list[Call]
    inputs: list[Reference]
    outputs: list[Reference]
    kept: dict[int, Tensor]
    made: dict[int, Tensor]  # what memory held when a call had just made it, from no tensor's values


def reference(tensor: Tensor) -> Reference:
    """The tensor's reference."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not plain or tensor.device.type != "cpu":
        raise Unsupported(f"a {type(tensor).__name__} on {tensor.device}")
    memory = tensor.untyped_storage().data_ptr()
    return Reference(memory, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def record(
    step: Callable[[Sequence[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor]
) -> tuple[Trace, list[Tensor]]:
    """Runs `step` on copies of the inputs. Returns its trace, and its outputs as they came.

    Raises:
        Unsupported: the step reads the values of tensors, draws random numbers, or uses other than plain tensors.
    """
    inputs = [leaf.detach().clone(memory_format=torch.contiguous_format) for leaf in inputs]
    given = [reference(leaf) for leaf in inputs]
    recorder = _Recorder()
    recorder.keep(inputs)
    with recorder:
        outputs = list(step(inputs))
    if recorder.problem is not None:
        raise Unsupported(recorder.problem)
    recorder.keep(outputs)
    found = [reference(leaf) for leaf in outputs]
    return Trace(recorder.calls, given, found, recorder.kept, recorder.made), outputs


_FACTORIES = {
    f"aten::{name}"
    for name in ("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty")
}


class _Recorder(TorchDispatchMode):
    """Sees every operator below autograd, where composite ones are in their parts already."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.kept: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {}
        self.problem: str | None = None

    def keep(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            self.kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = _named(func, args, kwargs or {})
        given = _tensors(arguments)
        try:
            before, written = tree_map(_as_reference, arguments), _written(func, arguments)
        except Unsupported as error:
            self.problem = str(error)
        result = func(*args, **(kwargs or {}))
        if self.problem is not None:
            return result
        outputs = _tensors(result)
        if not given and not outputs:  # about dtypes, not about tensors
            return result
        chance = torch.Tag.nondeterministic_seeded in func.tags and arguments.get("dropout_p") != 0
        if chance or torch.Tag.data_dependent_output in func.tags:
            self.problem = f"{func} depends on chance or on values"
            return result
        self.keep([*given, *outputs])
        try:
            call = Call(func, before, [reference(tensor) for tensor in outputs], written)
        except Unsupported as error:
            self.problem = str(error)
            return result
        self.calls.append(call)
        if not given or func._schema.name in _FACTORIES:
            self.made |= {tensor.untyped_storage().data_ptr(): tensor.detach().clone() for tensor in outputs}
        return result


def _named(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by their names in the operator's schema, defaults included."""
    named = {}
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            named[argument.name] = args[index]
        elif argument.name in kwargs:
            named[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            named[argument.name] = argument.default_value
    return named


def _tensors(value: Any) -> list[Tensor]:
    """All tensors among arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


def _as_reference(value: Any) -> Any:
    return reference(value) if isinstance(value, Tensor) else value


def _written(func: Any, arguments: dict[str, Any]) -> frozenset[int]:
    """The memory of the arguments whose values the operator changes."""
    if torch.Tag.inplace_view in func.tags:  # changes shapes only
        return frozenset()
    changed = [z.name for z in func._schema.arguments if z.alias_info is not None and z.alias_info.is_write]
    tensors = [tensor for name in changed for tensor in _tensors(arguments.get(name))]
    return frozenset(tensor.untyped_storage().data_ptr() for tensor in tensors)
