"""What PyTorch sees of the rotary positions' kernel: an operator whose gradient is itself, the other way round.

Dimensions: B batch, T time, H heads, K features.
"""

from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.operator import differentiable

__all__ = ["rotate"]

_ITEM = 1 << 14  # numbers in a work item: some ten microseconds
_turn = Kernel("rotary", "turn")


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """x (B, T, H, K) with features i and i + K / 2 turned by the angles of cosine and sine, (B, T, K / 2)."""
    return turn(x, cosine, sine, 1.0)


@torch.library.custom_op("seriatim::cpu_rotary", mutates_args=())
def turn(x: Tensor, cosine: Tensor, sine: Tensor, sign: float) -> Tensor:
    """The same by `sign` times the angles."""
    out = x.new_empty(x.shape)
    block = max(1, _ITEM // max(x.size(2) * x.size(3), 1))
    _turn(x.size(0) * -(-x.size(1) // block), block, sign, *(rows(z) for z in (x, cosine, sine)), out)
    return out


@turn.register_fake
def _(x: Tensor, cosine: Tensor, sine: Tensor, sign: float) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cosine, sine, ctx.sign = inputs
    ctx.save_for_backward(cosine, sine)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return turn(grad, *ctx.saved_tensors, -ctx.sign), None, None, None


differentiable(turn, _save, _gradients, _gradients)
