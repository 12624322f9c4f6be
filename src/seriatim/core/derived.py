"""What follows from a module's parameters alone, kept while a model writes one token after another.

It is found again as soon as a parameter, a buffer or a plain attribute has another value. Where gradients are wanted,
or somebody watches or traces the calls to PyTorch, nothing is kept and nothing kept is used. An engine that records a
step takes the kept tensors for ones that live on, and is told how to have them made fresh.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakMethod

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from seriatim.core.stepping import before_replay, is_recording, is_watched

__all__ = ["Derived"]

Found = TypeVar("Found", bound=tuple[Tensor, ...])


class _Kept(NamedTuple):
    tensors: list[Tensor]  # copies: whoever changed them need not have told
    plain: dict[str, Any]
    found: Any


class Derived(Generic[Found]):
    """`derived(module.method)` is `then(module.method())`, or what that was when the module was last as it is now.

    `then` returns a tuple of tensors. Where they change, what was returned before changes with them.
    """

    def __init__(self, then: Callable[[Any], Found]) -> None:
        self._then = then
        self._kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()

    def __call__(self, method: Callable[[], Any]) -> Found:
        if is_recording():
            weak = WeakMethod(method)
            before_replay(lambda: self._fresh(weak()))
            with _disable_current_modes():
                return self._fresh(method)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_watched():
            return self._then(method())
        return self._fresh(method)

    def _fresh(self, method: Any) -> Found:
        module = method.__self__
        tensors = [*module.parameters(), *module.buffers()]
        plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        kept = self._kept.get(module)
        if kept is None or kept.plain != plain or not _equal(kept.tensors, tensors):
            with torch.inference_mode(False), torch.no_grad():
                found, copies = self._then(method()), [z.detach().clone() for z in tensors]
                if kept is not None and all(map(_alike, kept.found, found)):
                    for place, value in zip(kept.found, found, strict=True):
                        place.copy_(value)
                    found = kept.found
            kept = self._kept[module] = _Kept(copies, plain, found)
        fresh: Found = kept.found
        return fresh


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.device == b.device


def _equal(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    return len(before) == len(now) and all(_alike(a, b) and torch.equal(a, b) for a, b in zip(before, now, strict=True))
