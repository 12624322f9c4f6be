"""Mamba's scan by chunks, as one node to a compiler, whose backward pass is written by hand.

A chunk of tokens is read at a time by the blocked scan of :mod:`seriatim.ops.diagonal_scan`, so that states exist for
one chunk only; the backward pass computes them again, from the state that each chunk began with.

Dimensions: B batch, T time, E channels, N state size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.ops.diagonal_scan import blocked, scan_in_place

__all__ = ["scan"]


@torch.library.custom_op("seriatim::selective_scan", mutates_args=())
def scan(
    delta: Tensor,
    u: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    reset: Tensor | None,
    tokens: int,
    signed: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(delta, u = delta x, A^T, B, C, state^T) -> (y, last state^T, the states^T at the chunks' starts).

    `tokens` make a chunk. States are (B, T, N, E) inside: with the channels last, products with delta and u run along
    memory. To a compiler this is one node, however long.
    """
    A, h = A.contiguous(), state.contiguous()
    starts, outputs = [], []
    for first in range(0, u.size(1), tokens):
        part = slice(first, first + tokens)
        starts.append(h)
        states = u[:, part, None] * B[:, part, :, None]
        h = scan_in_place(_decay(delta[:, part], A, reset, first, signed), states, h).clone()
        outputs.append((C[:, part, None] @ states).squeeze(2))
    return torch.cat(outputs, 1), h, torch.stack(starts, 1)


@scan.register_fake
def _(
    delta: Any, u: Tensor, A: Any, B: Any, C: Any, state: Tensor, reset: Any, tokens: int, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    batch, states, channels = state.shape
    chunks = (u.size(1) + tokens - 1) // tokens
    return u.new_empty(u.shape), state.new_empty(state.shape), state.new_empty(batch, chunks, states, channels)


@torch.library.custom_op("seriatim::selective_scan_backward", mutates_args=())
def _scan_backward(
    grad_y: Tensor,
    grad_last: Tensor,
    delta: Tensor,
    u: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    reset: Tensor | None,
    starts: Tensor,
    tokens: int,
    signed: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in delta, u, A^T, B, C and state^T, the states computed again chunk by chunk, the last first."""
    A = A.contiguous()
    padded = F.pad(delta, (0, 0, 0, 1))  # what comes after the last token decays by exp(0) = 1
    grad_h, grad_A, parts = grad_last, torch.zeros_like(A), []
    for index in range(starts.size(1) - 1, -1, -1):
        first = index * tokens
        part = slice(first, first + tokens)
        decay = _decay(padded[:, first : first + tokens + 1], A, reset, first, signed)
        slope = _begin_anew(decay[:, :-1] + 1, reset, first) if signed else decay[:, :-1]
        along = [z[:, part] for z in (grad_y, delta, u, B, C)]
        *grads, grad_h, new_A = _chunk_backward(along, A, grad_h, decay, slope, starts[:, index])
        parts.append(grads)
        grad_A += new_A
    grad_state = grad_h * _decay(delta[:, :1], A, reset, 0, signed)[:, 0]
    grad_delta, grad_u, grad_B, grad_C = (torch.cat(grads[::-1], 1) for grads in zip(*parts, strict=True))
    return grad_delta, grad_u, grad_A, grad_B, grad_C, grad_state


@_scan_backward.register_fake
def _(grad_y: Any, grad_last: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(z.new_empty(z.shape) for z in (*inputs[:5], grad_last))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.tokens, ctx.signed = inputs
    ctx.save_for_backward(*tensors, output[2])


def _gradients(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, state, reset, starts = ctx.saved_tensors
    if torch.is_grad_enabled():  # for second derivatives
        grads = _differentiable_gradients([*inputs, state], reset, grad_y, grad_last, ctx.signed)
    else:
        grads = _scan_backward(grad_y, grad_last, *inputs, reset, starts, ctx.tokens, ctx.signed)
    return *grads, None, None, None


scan.register_autograd(_gradients, setup_context=_save)


def _differentiable_gradients(
    inputs: list[Tensor], reset: Tensor | None, grad_y: Tensor, grad_last: Tensor, signed: bool
) -> tuple[Tensor, ...]:
    """The gradients as functions that can be differentiated again, from states that are all kept in memory."""
    # Views, because the inputs themselves may depend on one another: the gradients here are those in each alone.
    inputs = [z.view_as(z) if z.requires_grad else z.detach().requires_grad_() for z in inputs]
    delta, u, A, B, C, state = inputs
    decay = (delta.unsqueeze(2) * A).exp()
    h, last = blocked(2 * decay - 1 if signed else decay, u.unsqueeze(2) * B.unsqueeze(3), state=state, reset=reset)
    y = (C.unsqueeze(2) @ h).squeeze(2)
    return torch.autograd.grad((y, last), inputs, (grad_y, grad_last), create_graph=True)


def _decay(delta: Tensor, A: Tensor, reset: Tensor | None, first: int, signed: bool) -> Tensor:
    """exp(delta A), (B, T, N, E), or with `signed` 2 exp(delta A) - 1, and 0 at resets; the first token is `first`."""
    exponent = delta.unsqueeze(2) * A
    return _begin_anew(exponent.expm1_().mul_(2).add_(1) if signed else exponent.exp_(), reset, first)


def _begin_anew(decay: Tensor, reset: Tensor | None, first: int) -> Tensor:
    """Writes 0 at resets; the first of these tokens is token `first` of the sequence."""
    if reset is not None:
        begins = reset[:, first : first + decay.size(1)]
        decay[:, : begins.size(1)].masked_fill_(begins[:, :, None, None], 0.0)
    return decay


def _chunk_backward(
    along: list[Tensor], A: Tensor, grad_after: Tensor, decay: Tensor, slope: Tensor, start: Tensor
) -> tuple[Tensor, ...]:
    """The gradients in delta, u, B, C of a chunk, in the state after its first token, and in A.

    grad_after is the gradient in the state after the next chunk's first token, whose decay is the last of `decay`.
    `along` are grad_y, delta, u, B and C; slope is the derivative of the chunk's decays in the exponents delta A.
    """
    grad_y, delta, u, B, C = along
    h = u.unsqueeze(2) * B.unsqueeze(3)
    scan_in_place(decay[:, :-1], h, start)
    grad_C = (h @ grad_y.unsqueeze(3)).squeeze(3)
    grad_h = grad_y.unsqueeze(2) * C.unsqueeze(3)
    first = scan_in_place(decay[:, 1:], grad_h, grad_after, reverse=True).clone()
    grad_u = (B.unsqueeze(2) @ grad_h).squeeze(2)
    grad_B = (grad_h @ u.unsqueeze(3)).squeeze(3)
    grad_exponent = grad_h.mul_(slope)
    grad_exponent[:, 0] *= start
    grad_exponent[:, 1:] *= h[:, :-1]
    grad_delta = (grad_exponent * A).sum(2)
    grad_A = grad_exponent.mul_(delta.unsqueeze(2)).sum((0, 1))
    return grad_delta, grad_u, grad_B, grad_C, first, grad_A
