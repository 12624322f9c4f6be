"""What follows from a module's parameters alone, kept while a model writes one token after another.

It is found again as soon as a parameter or a buffer was changed or replaced, or a plain attribute has another value.
Changes of tensors are told by PyTorch's own count of them, which is cheap, and by every step of any optimiser, for
fused ones are not counted. What is done through `.data` or from another process is not seen; `forget`, which reading a
segment calls, makes for that. Where gradients are wanted, or somebody watches or traces the calls to PyTorch, nothing
is kept and nothing kept is used. An engine that records a step takes the kept tensors for ones that live on, and is
told how to have them made fresh.
"""

from collections.abc import Callable
from operator import is_
from typing import Any, Generic, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import _disable_current_modes

from seriatim.core.state import map_state
from seriatim.core.stepping import before_replay, is_recording, is_watched

__all__ = ["Derived"]

Found = TypeVar("Found", bound=tuple[Tensor, ...])


class Derived(Generic[Found]):
    """`derived(module.method)` is `then(module.method())`, or what that was when the module was last as it is now.

    An attribute of the module, made with it; no part of its copies. `then` returns a tuple of tensors. Where they
    change, what was returned before changes with them.
    """

    def __init__(self, then: Callable[[Any], Found]) -> None:
        self._then = then
        self._seen: _Seen | None = None
        self._found: Any = None

    def __call__(self, method: Callable[[], Any]) -> Found:
        module, function = _parts(method)
        if is_recording():
            owner = ref(module)
            before_replay(lambda: self._fresh(owner(), function))
            with _disable_current_modes():
                return self._fresh(module, function)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_watched():
            return self._then(method())
        return self._fresh(module, function)

    def forget(self) -> None:
        """Has everything found again when it is next asked for."""
        if not torch.compiler.is_compiling():
            self._seen = None

    def _fresh(self, module: Any, function: Callable[[Any], Any]) -> Found:
        seen = self._seen  # once: another thread may forget it meanwhile
        if seen is None or not seen.holds(module):
            with torch.inference_mode(False), torch.no_grad():
                seen = _Seen(module)
                # Copies: a parameter itself may be among them, and they are written to.
                found = map_state(_copy, self._then(function(module)))
                if self._found is not None and all(map(_alike, self._found, found)):
                    for place, value in zip(self._found, found, strict=True):
                        place.copy_(value)
                else:
                    self._found = found
            self._seen = seen
        fresh: Found = self._found
        return fresh

    def __deepcopy__(self, memo: Any) -> "Derived[Found]":
        return type(self)(self._then)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._then,)


class _Seen:
    """A module as it was. Refers to all inside it, but not to the module itself."""

    def __init__(self, module: nn.Module):
        parts = list(module.modules())
        self.holders = [held for part in parts for held in (part._modules, part._parameters, part._buffers)]
        self.insides = [vars(part) for part in parts[1:]]
        self.things = self._things()
        self.tensors = [thing for thing in self.things if isinstance(thing, Tensor)]
        self.memory = [tensor.detach() for tensor in self.tensors]  # so that no other comes to lie there
        self.marks, self.plain = [*map(_mark, self.tensors)], self._plain(module)
        self.learned = _learned

    def holds(self, module: nn.Module) -> bool:
        """Whether it is as it was."""
        things = self._things()
        return (
            self.learned == _learned
            and len(things) == len(self.things)
            and all(map(is_, things, self.things))
            and [*map(_mark, self.tensors)] == self.marks
            and self._plain(module) == self.plain
        )

    def _things(self) -> list[Any]:
        return [thing for held in self.holders for thing in held.values()]

    def _plain(self, module: nn.Module) -> list[Any]:
        return [value for inside in (vars(module), *self.insides) for value in inside.values() if type(value) in _PLAIN]


_PLAIN = {bool, int, float, str}
_learned = 0  # steps of all optimisers so far


def _count(*_: Any) -> None:
    global _learned
    _learned += 1


register_optimizer_step_post_hook(_count)


def _parts(method: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Whose method it is, and the function."""
    return method.__self__, method.__func__


def _mark(tensor: Tensor) -> Any:
    """Other after every change of the tensor that PyTorch counts, and where it does not count them at all."""
    return object() if tensor.is_inference() else (tensor.data_ptr(), tensor._version)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device
