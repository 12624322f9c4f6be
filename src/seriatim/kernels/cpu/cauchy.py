"""What PyTorch sees of the Cauchy product's kernels: two operators on real numbers, and the op on top of them.

Dimensions: G systems, J products of each, N poles, L nodes.
"""

from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.operator import differentiable

__all__ = ["cauchy"]

_BLOCK = 512  # nodes of a work item
_LANES = 16  # of the widest vector
_forward, _backward = Kernel("cauchy", "forward"), Kernel("cauchy", "backward")


def cauchy(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """Shapes as in :func:`seriatim.ops.cauchy.cauchy`, all complex64."""
    coefficients = 2 * v.real, 2 * v.imag * w.imag.unsqueeze(1)
    parts = forward(*coefficients, w.real, w.imag, torch.stack([z.real, z.imag]))
    return torch.complex(parts[:, :, 0], parts[:, :, 1])


@torch.library.custom_op("seriatim::cpu_cauchy", mutates_args=())
def forward(a: Tensor, b: Tensor, real: Tensor, imaginary: Tensor, nodes: Tensor) -> Tensor:
    """The sum of a X - b R over the poles, (G, J, 2, L); a, b (G, J, N), poles (G, N), nodes (2, L)."""
    out = _result(a, nodes)
    items = a.size(0) * -(-nodes.size(1) // _BLOCK)
    inputs = [rows(z) for z in (a, b, real, imaginary, nodes)]
    _forward(items, *inputs, _BLOCK, out, scratch=2 * a.size(1) * _LANES)
    return out


@torch.library.custom_op("seriatim::cpu_cauchy_backward", mutates_args=())
def backward(
    grad: Tensor, a: Tensor, b: Tensor, real: Tensor, imaginary: Tensor, nodes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of a, b and the poles."""
    results = _gradient_results(a, real)
    inputs = [rows(z) for z in (grad, a, b, real, imaginary, nodes)]
    _backward(a.size(0), *inputs, *results, scratch=2 * (a.size(1) + 1) * a.size(2) * _LANES)
    return results


def _result(a: Tensor, nodes: Tensor) -> Tensor:
    return a.new_empty(*a.shape[:2], 2, nodes.size(1))


def _gradient_results(a: Tensor, real: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (a.new_empty(a.shape), a.new_empty(a.shape), real.new_empty(real.shape), real.new_empty(real.shape))


@forward.register_fake
def _(a: Tensor, b: Tensor, real: Tensor, imaginary: Tensor, nodes: Tensor) -> Tensor:
    return _result(a, nodes)


@backward.register_fake
def _(
    grad: Any, a: Tensor, b: Tensor, real: Tensor, imaginary: Tensor, nodes: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _gradient_results(a, real)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(grad, *ctx.saved_tensors), None


differentiable(forward, _save, _gradients)
