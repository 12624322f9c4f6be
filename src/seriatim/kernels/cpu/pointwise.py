"""What PyTorch sees of the layers between products: operators for SiLU gates and for the root mean square norm.

Second derivatives are those of the portable equation.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.operator import differentiable

__all__ = ["rms_norm", "silu_gate", "swiglu"]

_ITEM = 1 << 14  # numbers in a work item: some ten microseconds
_PARTS = 64  # most sums of gradients that are kept apart, for as many threads to work on
_silu_gate, _silu_gate_backward = Kernel("pointwise", "silu_gate"), Kernel("pointwise", "silu_gate_backward")
_rms_norm, _rms_norm_backward = Kernel("pointwise", "rms_norm"), Kernel("pointwise", "rms_norm_backward")


def _flat(x: Tensor) -> Tensor:
    """(rows, features): a view wherever there is one."""
    return rows(x.reshape(-1, x.size(-1)))


def _blocks(count: int, features: int) -> tuple[int, int]:
    """How many items `count` rows make, and how many rows an item has."""
    block = max(1, _ITEM // max(features, 1), -(-count // _PARTS))
    return -(-count // block), block


def _portable(equation: Callable[..., Tensor], inputs: list[Any], grad: Tensor) -> list[Any]:
    """The gradients of `equation`, as functions that can be differentiated again."""
    inputs = [z.view_as(z) if z is not None and z.requires_grad else z for z in inputs]
    wanted = [z for z in inputs if z is not None and z.requires_grad]
    found = iter(torch.autograd.grad(equation(*inputs), wanted, grad, create_graph=True))
    return [next(found) if z is not None and z.requires_grad else None for z in inputs]


def silu_gate(gate: Tensor, x: Tensor | None) -> Tensor:
    """x silu(gate), any shape; None is 1."""
    return _gate(gate, x)


def swiglu(both: Tensor) -> Tensor:
    """silu(gate) x, where gate and x are the halves of the last dimension of `both`."""
    return _swiglu(both)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight x / sqrt(mean(x^2) + epsilon), the mean over the last dimension."""
    return _norm(x, weight, epsilon)


@torch.library.custom_op("seriatim::cpu_silu_gate", mutates_args=())
def _gate(gate: Tensor, x: Tensor | None) -> Tensor:
    y = gate.new_empty(gate.shape)
    items, block = _blocks(gate.numel() // max(1, gate.size(-1)), gate.size(-1))
    _silu_gate(items, block, None if x is None else _flat(x), _flat(gate), _flat(y))
    return y


@torch.library.custom_op("seriatim::cpu_silu_gate_backward", mutates_args=())
def _gate_gradients(grad: Tensor, gate: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor]:
    """The gradients of gate and x; that of x is empty where there is none."""
    grad_gate, grad_x = gate.new_empty(gate.shape), gate.new_empty((0,) if x is None else x.shape)
    items, block = _blocks(gate.numel() // max(1, gate.size(-1)), gate.size(-1))
    flat_x, flat_grad_x = (None, None) if x is None else (_flat(x), _flat(grad_x))
    _silu_gate_backward(items, block, _flat(grad), flat_x, _flat(gate), flat_grad_x, _flat(grad_gate))
    return grad_gate, grad_x


@_gate.register_fake
def _(gate: Tensor, x: Tensor | None) -> Tensor:
    return gate.new_empty(gate.shape)


@_gate_gradients.register_fake
def _(grad: Tensor, gate: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor]:
    return gate.new_empty(gate.shape), gate.new_empty((0,) if x is None else x.shape)


def _save_gate(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _gate_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    gate, x = ctx.saved_tensors
    grad_gate, grad_x = _gate_gradients(grad, gate, x)
    return grad_gate, None if x is None else grad_x


def _gate_again(ctx: Any, grad: Tensor) -> Any:
    def equation(gate: Tensor, x: Tensor | None) -> Tensor:
        return F.silu(gate) if x is None else x * F.silu(gate)

    return tuple(_portable(equation, list(ctx.saved_tensors), grad))


differentiable(_gate, _save_gate, _gate_backward, _gate_again)


@torch.library.custom_op("seriatim::cpu_swiglu", mutates_args=())
def _swiglu(both: Tensor) -> Tensor:
    gate, x = _flat(both).chunk(2, -1)
    y = both.new_empty(*both.shape[:-1], gate.size(-1))
    items, block = _blocks(gate.size(0), gate.size(1))
    _silu_gate(items, block, x, gate, _flat(y))
    return y


@torch.library.custom_op("seriatim::cpu_swiglu_backward", mutates_args=())
def _swiglu_gradients(grad: Tensor, both: Tensor) -> Tensor:
    """The gradient of both halves in one piece, as the product before them wants it."""
    grad_both = both.new_empty(both.shape)
    (gate, x), (grad_gate, grad_x) = (_flat(z).chunk(2, -1) for z in (both, grad_both))
    items, block = _blocks(gate.size(0), gate.size(1))
    _silu_gate_backward(items, block, _flat(grad), x, gate, grad_x, grad_gate)
    return grad_both


@_swiglu.register_fake
def _(both: Tensor) -> Tensor:
    return both.new_empty(*both.shape[:-1], both.size(-1) // 2)


@_swiglu_gradients.register_fake
def _(grad: Tensor, both: Tensor) -> Tensor:
    return both.new_empty(both.shape)


def _save_both(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _swiglu_backward(ctx: Any, grad: Tensor) -> Any:
    return _swiglu_gradients(grad, *ctx.saved_tensors)


def _swiglu_again(ctx: Any, grad: Tensor) -> Any:
    def equation(both: Tensor) -> Tensor:
        gate, x = both.chunk(2, -1)
        return F.silu(gate) * x

    return _portable(equation, list(ctx.saved_tensors), grad)[0]


differentiable(_swiglu, _save_both, _swiglu_backward, _swiglu_again)


@torch.library.custom_op("seriatim::cpu_rms_norm", mutates_args=())
def _norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    y = x.new_empty(x.shape)
    items, block = _blocks(x.numel() // max(1, x.size(-1)), x.size(-1))
    _rms_norm(items, block, _flat(x), rows(weight), epsilon, _flat(y))
    return y


@torch.library.custom_op("seriatim::cpu_rms_norm_backward", mutates_args=())
def _norm_gradients(grad: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight."""
    grad_x = x.new_empty(x.shape)
    items, block = _blocks(x.numel() // max(1, x.size(-1)), x.size(-1))
    sums = x.new_empty(items, x.size(-1))
    _rms_norm_backward(items, block, _flat(grad), _flat(x), rows(weight), epsilon, _flat(grad_x), sums)
    return grad_x, sums.sum(0)


@_norm.register_fake
def _(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return x.new_empty(x.shape)


@_norm_gradients.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _save_norm(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, ctx.epsilon = inputs
    ctx.save_for_backward(x, weight)


def _norm_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *_norm_gradients(grad, *ctx.saved_tensors, ctx.epsilon), None


def _norm_again(ctx: Any, grad: Tensor) -> Any:
    def equation(x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, ctx.epsilon)

    return *_portable(equation, list(ctx.saved_tensors), grad), None


differentiable(_norm, _save_norm, _norm_backward, _norm_again)
