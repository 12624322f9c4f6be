"""What the operators of this folder have in common: when they can be used, and what they refuse."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.library import KernelError, load

__all__ = ["available", "differentiable", "unread", "wants_gradient"]

_found: dict[str, bool] = {}


@torch.compiler.assume_constant_result
def available(source: str) -> bool:
    """Whether the kernels of source/<source>.py can run here. Compiles them if need be; warns once if none can."""
    if source not in _found:
        try:
            load(source)
            _found[source] = True
        except KernelError as error:
            if all(_found.values()):
                warnings.warn(f"no compiled CPU kernels, PyTorch does their work instead: {error}", stacklevel=2)
            _found[source] = False
    return _found[source]


def wants_gradient(*inputs: Any) -> bool:
    """Whether a gradient is wanted for any of them."""
    return torch.is_grad_enabled() and any(isinstance(z, Tensor) and z.requires_grad for z in inputs)


def unread(o: Tensor, last: Tensor, states: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The results of a scan that has nothing to read: the state is as it was."""
    last.zero_() if state is None else last.copy_(state)
    return o.zero_(), last, states


def differentiable(
    operator: Any, save: Callable[..., None], gradients: Callable[..., Any], again: Callable[..., Any] | None = None
) -> None:
    """Gives a custom operator its backward pass, and no rule for vmap.

    `again(ctx, *grads)` gives the gradients as functions that can be differentiated again; None: they cannot.
    """

    def once(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            if again is not None:
                return again(ctx, *grads)
            raise SeriatimError(
                f"{operator._name} has no second derivatives; "
                'take them inside `with seriatim.ops.backend("torch")`, the forward pass included'
            )
        return gradients(ctx, *grads)

    def refuse(info: Any, dims: Any, *arguments: Any) -> Any:
        raise SeriatimError(f'{operator._name} has no rule for vmap; use `with seriatim.ops.backend("torch")`')

    operator.register_autograd(once, setup_context=save)
    operator.register_vmap(refuse)
