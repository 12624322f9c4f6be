"""What PyTorch sees of the selective scan's kernels: two operators, and the op on top of them.

Dimensions: B batch, T time, E channels, N state values.
"""

from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.memory import room
from seriatim.kernels.cpu.operator import differentiable, wants_gradient

__all__ = ["blocks", "chunk_size", "selective_scan"]

_LANES = 16  # channels that a vector has at most; a block of channels is some times as many
_CHUNKS = (8, 16, 32)
_ITEMS = 16  # of the backward pass: enough for many threads to share
_WIDEST = 8  # vectors an item; beyond that, adding up sums over channels costs nothing any more
_forward, _backward = Kernel("selective_scan", "forward"), Kernel("selective_scan", "backward")


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    *,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    signed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Shapes as in :func:`seriatim.ops.selective_scan.selective_scan`, all float32."""
    if x.size(1) == 0:
        return x, x.new_zeros(x.size(0), *A.shape) if state is None else state
    inputs = (x, delta, A, B, C, D, state)
    y, last, _ = forward(*inputs, reset, wants_gradient(*inputs), signed)
    return y, last


def chunk_size(states: int) -> int:
    """How many tokens are read at a time: what is noted of them for the way back stays in the first level cache.

    But no fewer than there are state values, as long as the second level cache holds that: the states kept where chunks
    begin then take no more room than x.
    """
    fast = largest_block(lambda tokens: 4 * _LANES * (3 + 2 * _LANES) * tokens, caches().first, _CHUNKS)
    most = largest_block(lambda tokens: 4 * _backward_scratch(states, tokens), caches().second, _CHUNKS)
    return max(fast, min(most, *(tokens for tokens in _CHUNKS if tokens >= min(states, _CHUNKS[-1]))))


def blocks(batch: int, channels: int, states: int) -> int:
    """How many channels a work item of the backward pass has.

    An item writes its own sums over channels, 2 N numbers a token, where it reads and writes 5 for every channel.
    """
    vectors = -(-channels // _LANES)
    several = min(_WIDEST, batch * vectors // _ITEMS)
    return _LANES * max(1, min(vectors, max(several, -(-states // _LANES))))


def _backward_scratch(states: int, tokens: int) -> int:
    return _LANES * (3 * states + (5 + 2 * _LANES) * tokens + 5 * _LANES)


@torch.library.custom_op("seriatim::cpu_selective_scan", mutates_args=())
def forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    keep: bool,
    signed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, T, E), the last state (B, E, N), and if `keep` the states before each chunk, in the kernel's order."""
    y, last, starts = (room(x, *shape) for shape in _shapes(x, A, keep))
    inputs = [rows(z) for z in (x, delta, A, B, C, D, state, reset)]
    items, states = x.size(0) * -(-x.size(2) // _LANES), A.size(1)
    outputs = (y, last, starts if keep else None)
    _forward(items, *inputs, chunk_size(states), _LANES, int(signed), *outputs, scratch=4 * states * _LANES)
    return y, last, starts


@torch.library.custom_op("seriatim::cpu_selective_scan_backward", mutates_args=())
def backward(
    grad_y: Tensor,
    grad_last: Tensor,
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    reset: Tensor | None,
    starts: Tensor,
    signed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, delta, A, B, C, D and the state."""
    batch, time, channels = x.shape
    states = A.size(1)
    tokens, width = chunk_size(states), blocks(batch, channels, states)
    items = -(-channels // width)
    grad_x, grad_delta, grad_state = (room(x, *z.shape) for z in (x, delta, grad_last))
    grad_A, grad_D = x.new_empty(batch, channels, states), x.new_empty(batch, channels)
    grad_B, grad_C = (room(x, items, batch, time, states) for _ in range(2))
    inputs = [rows(z) for z in (grad_y, grad_last, x, delta, A, B, C, D, reset, starts)]
    outputs = (grad_x, grad_delta, grad_state, grad_A, grad_D, grad_B, grad_C)
    _backward(batch * items, *inputs, tokens, width, int(signed), *outputs, scratch=_backward_scratch(states, tokens))
    return grad_x, grad_delta, grad_A.sum(0), grad_B.sum(0), grad_C.sum(0), grad_D.sum(0), grad_state


def _shapes(x: Tensor, A: Tensor, keep: bool) -> tuple[tuple[int, ...], ...]:
    """Of the output, the last state and the states kept."""
    (batch, time, channels), states = x.shape, A.size(1)
    chunks = -(-time // chunk_size(states)) if keep else 0
    return x.shape, (batch, channels, states), (batch, chunks, -(-channels // _LANES) * _LANES * states)


@forward.register_fake
def _(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, state: Any, reset: Any, keep: bool, signed: Any
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(shape) for shape in _shapes(x, A, keep))


@backward.register_fake
def _(grad_y: Any, grad_last: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return *(x.new_empty(z.shape) for z in (x, *others[:4])), x.new_empty(x.size(2)), x.new_empty(grad_last.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, delta, A, B, C, D, state, reset, _, ctx.signed = inputs
    ctx.save_for_backward(x, delta, A, B, C, D, reset, output[2])
    ctx.has_state = state is not None


def _gradients(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, D, reset, starts = ctx.saved_tensors
    *grads, grad_D, grad_state = backward(grad_y, grad_last, *inputs, D, reset, starts, ctx.signed)
    return *grads, None if D is None else grad_D, grad_state if ctx.has_state else None, None, None, None


differentiable(forward, _save, _gradients)
