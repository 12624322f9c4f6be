"""What follows from a module's parameters alone, kept while a model writes one token after another.

It is found again as soon as a parameter, a buffer or a plain attribute has another value. Where gradients are wanted,
or somebody watches or traces the calls to PyTorch, nothing is kept and nothing kept is used.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from seriatim.core.stepping import is_recording, is_watched

__all__ = ["Derived"]

Found = TypeVar("Found")


class _Kept(NamedTuple):
    tensors: list[Tensor]  # copies: whoever changed them need not have told
    plain: dict[str, Any]
    found: Any


class Derived(Generic[Found]):
    """`derived(module, compute)` is `compute()`, or what that was when the module was last as it is now."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[nn.Module, _Kept] = WeakKeyDictionary()

    def __call__(self, module: nn.Module, compute: Callable[[], Found]) -> Found:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or is_recording() or is_watched():
            return compute()
        tensors = [*module.parameters(), *module.buffers()]
        plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str)}
        kept = self._kept.get(module)
        if kept is None or kept.plain != plain or not _equal(kept.tensors, tensors):
            kept = self._kept[module] = _Kept([z.detach().clone() for z in tensors], plain, compute())
        found: Found = kept.found
        return found


def _equal(before: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    return len(before) == len(now) and all(
        a.dtype == b.dtype and a.device == b.device and torch.equal(a, b) for a, b in zip(before, now, strict=True)
    )
