"""What PyTorch sees of the short convolution's kernels: two operators, and the op on top of them.

Dimensions: B batch, T time, D features, W taps.
"""

from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.operator import differentiable

__all__ = ["short_conv"]

_FEATURES = (64, 128, 256, 512, 1024, 2048)  # that a work item may be wide
_ITEM = 1 << 15  # numbers in a work item: tens of microseconds, beside which taking it up is nothing
_PARTS = 64  # of time and batch, for which sums of gradients are kept apart: enough for many threads to share
_forward, _backward = Kernel("short_conv", "forward"), Kernel("short_conv", "backward")


def short_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in :func:`seriatim.ops.short_conv.short_conv`, all float32. The outputs of padded tokens are 0."""
    lengths = None if lengths is None else lengths.to(torch.int64)
    y, tail = forward(x, weight, bias, state, reset, lengths)
    return y, tail


def blocks(batch: int, time: int, dim: int, taps: int) -> tuple[int, int]:
    """How many tokens and features a work item has.

    In the first level cache lie, for every feature, the weights, the sums of their gradients, as many tokens as there
    are taps, and the token that is computed.
    """
    features = min(largest_block(lambda width: 4 * width * (3 * taps + 3), caches().first, _FEATURES), max(dim, 1))
    parts = max(1, _PARTS // max(batch, 1))
    return max(_ITEM // features, -(-time // parts), 1), features


@torch.library.custom_op("seriatim::cpu_short_conv", mutates_args=())
def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """y (B, T, D) and the tail (B, W - 1, D)."""
    items, tokens, features = _items(x, weight)
    y, tail = _results(x, weight)
    inputs = [rows(z) for z in (x, weight, bias, state, reset, lengths)]
    _forward(items, *inputs, tokens, features, y, tail, scratch=(weight.size(1) + 1) * features)
    return y, tail


@torch.library.custom_op("seriatim::cpu_short_conv_backward", mutates_args=())
def backward(
    grad_y: Tensor,
    grad_tail: Tensor,
    x: Tensor,
    weight: Tensor,
    state: Tensor | None,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and state; that of the state is empty where there is none."""
    items, tokens, features = _items(x, weight)
    grad_x, grad_tail_x = _results(x, weight)
    grad_state = grad_tail_x if state is not None else x.new_empty(0, 0, 0)
    parts = x.size(0) * max(1, -(-x.size(1) // tokens))
    sums = x.new_empty(parts, weight.size(1) + 1, x.size(2))
    inputs = [rows(z) for z in (grad_y, grad_tail, x, weight, state, reset, lengths)]
    outputs = [grad_x, grad_state, sums]
    _backward(items, *inputs, tokens, features, *outputs, scratch=(2 * weight.size(1) + 1) * features)
    total = sums.sum(0)
    return grad_x, total[:-1].mT.contiguous(), total[-1].clone(), grad_state


def _items(x: Tensor, weight: Tensor) -> tuple[int, int, int]:
    """How many work items there are, and how many tokens and features each has."""
    batch, time, dim = x.shape
    tokens, features = blocks(batch, time, dim, weight.size(1))
    return batch * max(1, -(-time // tokens)) * -(-dim // features), tokens, features


def _results(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Room for something of the shape of x, and of the tail."""
    batch, _, dim = x.shape
    return x.new_empty(x.shape), x.new_empty(batch, weight.size(1) - 1, dim)


@forward.register_fake
def _(x: Tensor, weight: Tensor, bias: Any, state: Any, reset: Any, lengths: Any) -> tuple[Tensor, Tensor]:
    return _results(x, weight)


@backward.register_fake
def _(
    grad_y: Tensor, grad_tail: Tensor, x: Tensor, weight: Tensor, state: Any, reset: Any, lengths: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_tail_x = _results(x, weight)
    grad_state = grad_tail_x if state is not None else x.new_empty(0, 0, 0)
    return grad_x, weight.new_empty(weight.shape), weight.new_empty(weight.size(0)), grad_state


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, bias, state, reset, lengths = inputs
    ctx.save_for_backward(x, weight, state, reset, lengths)
    ctx.biased = bias is not None


def _gradients(ctx: Any, grad_y: Tensor, grad_tail: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, state, reset, lengths = ctx.saved_tensors
    grads = backward(grad_y, grad_tail, x, weight, state, reset, lengths)
    grad_x, grad_weight, grad_bias, grad_state = grads
    return grad_x, grad_weight, grad_bias if ctx.biased else None, None if state is None else grad_state, None, None


differentiable(forward, _save, _gradients)
