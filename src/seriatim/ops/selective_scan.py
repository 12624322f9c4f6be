r"""Mamba's scan: a diagonal state space whose step size and read and write directions depend on the input.

.. math:: h_t = e^{\Delta_t A} \odot h_{t-1} + \Delta_t x_t B_t^\top, \qquad y_t = h_t C_t + D \odot x_t

Dimensions: B batch, T time, E channels, N state size.

The parallel path reads a chunk of tokens at a time by the blocked scan of :mod:`seriatim.ops.diagonal_scan`, so that
states exist for one chunk only; the backward pass computes them again, from the state that each chunk began with.
Source: Gu and Dao, 2023, arXiv:2312.00752, equation 2 with the discretisation of its code (B by Euler's rule), section
3.3.2.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from seriatim.kernels.cpu.selective_scan import selective_scan as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_reset, check_tensors
from seriatim.ops.diagonal_scan import BLOCK, blocked, scan_in_place
from seriatim.ops.precision import cast, compute_dtype, full_precision

__all__ = ["reference", "selective_scan"]

CHUNK_ELEMENTS = {"cpu": 1 << 19}  # of the states of a chunk: what a core's cache holds
CHUNK_ELEMENTS_ELSEWHERE = 1 << 24  # enough to keep a large device busy
LEAST = 1 << 15  # state values below which calling the compiled kernel for one token takes longer than it saves


def selective_scan(
    x: Float[Tensor, "B T E"],
    delta: Float[Tensor, "B T E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T N"],
    C: Float[Tensor, "B T N"],
    D: Float[Tensor, " E"] | None = None,
    *,
    state: Float[Tensor, "B E N"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """h = exp(delta A) h + delta x B, y = C.h + D x.

    Args:
        x: (B, T, E).
        delta: (B, T, E), the step sizes, already positive. A token whose step is 0 leaves the state as it is.
        A: (E, N), usually negative.
        B, C: (B, T, N), what to write and what to read.
        D: (E,), how much of x passes by; None is 0.
        state: (B, E, N), what an earlier call returned; None is zeros.
        reset: (B, T) bool, the state is emptied before this token.

    Returns:
        y (B, T, E) in the dtype of x, and the state after the last token, in float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    check_tensors(
        {
            "x": (x, "batch time channels"),
            "delta": (delta, "batch time channels"),
            "A": (A, "channels states"),
            "B": (B, "batch time states"),
            "C": (C, "batch time states"),
            "D": (D, "channels?"),
            "state": (state, "batch channels states?"),
        }
    )
    check_reset(reset, x)
    arguments = cast(compute_dtype(x, delta, A, B, C, D, state), x, delta, A, B, C, D, state)
    with full_precision(x.device):
        kernels = {"cpu": compiled} if x.size(1) > 1 or x.size(0) * A.numel() >= LEAST else {}
        scan = choose({"reference": reference, "torch": chunked, **kernels}, arguments[0])
        y, state = scan(*arguments[:-1], state=arguments[-1], reset=reset)
    return y.to(x.dtype), state


def reference(
    x: Float[Tensor, "B T E"],
    delta: Float[Tensor, "B T E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T N"],
    C: Float[Tensor, "B T N"],
    D: Float[Tensor, " E"] | None = None,
    *,
    state: Float[Tensor, "B E N"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """The equation, token by token."""
    h = x.new_zeros(x.size(0), *A.shape) if state is None else state
    outputs = []
    for t in range(x.size(1)):
        if reset is not None:
            h = torch.where(reset[:, t, None, None], 0.0, h)
        h = torch.exp(delta[:, t, :, None] * A) * h + (delta[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        y = torch.einsum("ben,bn->be", h, C[:, t])
        outputs.append(y if D is None else y + D * x[:, t])
    return (torch.stack(outputs, 1) if outputs else x), h


def chunked(
    x: Float[Tensor, "B T E"],
    delta: Float[Tensor, "B T E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T N"],
    C: Float[Tensor, "B T N"],
    D: Float[Tensor, " E"] | None = None,
    *,
    state: Float[Tensor, "B E N"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """The same by a scan over the blocks of a chunk."""
    state = x.new_zeros(x.size(0), *A.shape) if state is None else state
    if x.size(1) == 0:
        return x, state
    if x.size(1) == 1:
        y, state = _step(x, delta, A, B, C, state, reset)
    else:
        y, last, _ = _scan(delta, delta * x, A.mT, B, C, state.mT, reset, _chunk_tokens(state))
        state = last.mT
    return (y if D is None else torch.addcmul(y, D, x)), state


def _step(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token, as generation reads them."""
    if reset is not None:
        state = state.masked_fill(reset[:, :, None], 0.0)
    decay = (delta.mT * A).exp()
    state = torch.addcmul(decay * state, (delta * x).mT, B)
    return (C @ state.mT), state


def _chunk_tokens(state: Tensor) -> int:
    """Whole blocks whose states fit the cache, one at least."""
    elements = CHUNK_ELEMENTS.get(state.device.type, CHUNK_ELEMENTS_ELSEWHERE)
    return max(1, elements // max(1, state.numel()) // BLOCK) * BLOCK


@torch.library.custom_op("seriatim::selective_scan", mutates_args=())
def _scan(
    delta: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, tokens: int
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
        h = scan_in_place(_decay(delta[:, part], A, reset, first), states, h).clone()
        outputs.append((C[:, part, None] @ states).squeeze(2))
    return torch.cat(outputs, 1), h, torch.stack(starts, 1)


@_scan.register_fake
def _(
    delta: Tensor, u: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, tokens: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, states, channels = state.shape
    chunks = (u.size(1) + tokens - 1) // tokens
    return (
        u.new_empty(u.shape),
        state.new_empty(state.shape),
        state.new_empty(batch, chunks, states, channels),
    )


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in delta, u, A^T, B, C and state^T, the states computed again chunk by chunk, the last first."""
    A = A.contiguous()
    padded = F.pad(delta, (0, 0, 0, 1))  # what comes after the last token decays by exp(0) = 1
    grad_h, grad_A, parts = grad_last, torch.zeros_like(A), []
    for index in range(starts.size(1) - 1, -1, -1):
        first = index * tokens
        part = slice(first, first + tokens)
        decay = _decay(padded[:, first : first + tokens + 1], A, reset, first)
        *grads, grad_h, new_A = _chunk_backward(
            grad_y[:, part], grad_h, decay, delta[:, part], u[:, part], A, B[:, part], C[:, part], starts[:, index]
        )
        parts.append(grads)
        grad_A += new_A
    grad_state = grad_h * _decay(delta[:, :1], A, reset, 0)[:, 0]
    grad_delta, grad_u, grad_B, grad_C = (torch.cat(grads[::-1], 1) for grads in zip(*parts, strict=True))
    return grad_delta, grad_u, grad_A, grad_B, grad_C, grad_state


@_scan_backward.register_fake
def _(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    delta, u, A, B, C, state = (z.new_empty(z.shape) for z in (delta, u, A, B, C, grad_last))
    return delta, u, A, B, C, state


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.tokens = inputs
    ctx.save_for_backward(*tensors, output[2])


def _gradients(ctx: Any, grad_y: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, state, reset, starts = ctx.saved_tensors
    if torch.is_grad_enabled():  # for second derivatives
        grads = _differentiable_gradients([*inputs, state], reset, grad_y, grad_last)
    else:
        grads = _scan_backward(grad_y, grad_last, *inputs, reset, starts, ctx.tokens)
    return *grads, None, None


_scan.register_autograd(_gradients, setup_context=_save)


def _differentiable_gradients(
    inputs: list[Tensor], reset: Tensor | None, grad_y: Tensor, grad_last: Tensor
) -> tuple[Tensor, ...]:
    """The gradients as functions that can be differentiated again, from states that are all kept in memory."""
    # Views, because the inputs themselves may depend on one another: the gradients here are those in each alone.
    inputs = [z.view_as(z) if z.requires_grad else z.detach().requires_grad_() for z in inputs]
    delta, u, A, B, C, state = inputs
    h, last = blocked((delta.unsqueeze(2) * A).exp(), u.unsqueeze(2) * B.unsqueeze(3), state=state, reset=reset)
    y = (C.unsqueeze(2) @ h).squeeze(2)
    return torch.autograd.grad((y, last), inputs, (grad_y, grad_last), create_graph=True)


def _decay(delta: Tensor, A: Tensor, reset: Tensor | None, first: int) -> Tensor:
    """exp(delta A), (B, T, N, E), and 0 at resets; the first of these tokens is token `first` of the sequence."""
    decay = (delta.unsqueeze(2) * A).exp_()
    if reset is not None:
        begins = reset[:, first : first + delta.size(1)]
        decay[:, : begins.size(1)].masked_fill_(begins[:, :, None, None], 0.0)
    return decay


def _chunk_backward(
    grad_y: Tensor,
    grad_after: Tensor,
    decay: Tensor,
    delta: Tensor,
    u: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor,
) -> tuple[Tensor, ...]:
    """The gradients in delta, u, B, C of a chunk, in the state after its first token, and in A.

    grad_after is the gradient in the state after the next chunk's first token, whose decay is the last of `decay`.
    """
    h = u.unsqueeze(2) * B.unsqueeze(3)
    scan_in_place(decay[:, :-1], h, start)
    grad_C = (h @ grad_y.unsqueeze(3)).squeeze(3)
    grad_h = grad_y.unsqueeze(2) * C.unsqueeze(3)
    first = scan_in_place(decay[:, 1:], grad_h, grad_after, reverse=True).clone()
    grad_u = (B.unsqueeze(2) @ grad_h).squeeze(2)
    grad_B = (grad_h @ u.unsqueeze(3)).squeeze(3)
    grad_exponent = grad_h.mul_(decay[:, :-1])
    grad_exponent[:, 0] *= start
    grad_exponent[:, 1:] *= h[:, :-1]
    grad_delta = (grad_exponent * A).sum(2)
    grad_A = grad_exponent.mul_(delta.unsqueeze(2)).sum((0, 1))
    return grad_delta, grad_u, grad_B, grad_C, first, grad_A
