r"""The delta rule by chunks, as one node to a compiler, whose backward pass is written by hand.

With S the state that a chunk begins with and d(j, i) the decay from after token j to token i, what token i writes is

.. math:: u_i + \beta_i \sum_{j < i} (k_i^\top d(j, i) k_j) u_j = \beta_i (v_i - S^\top d(0, i) k_i).

This triangular system is solved for all chunks at once, for v and for the faded keys apart: u = u_v - u_k S. Then

.. math:: S' = d(0, C) S + \sum_j d(j, C) k_j u_j^\top, \qquad
    o_i = S^\top d(0, i) q_i + \sum_{j \le i} (q_i^\top d(j, i) k_j) u_j,

of which only S' runs from chunk to chunk. Kept for the backward pass are the states that the chunks begin with.

Dimensions: B batch, T time, H heads, K key dim, V value dim, D = 1 for a decay per head, else K, C tokens of a chunk,
n chunks, N = B H n. Source: Yang et al., 2024, arXiv:2406.06484, section 3 and appendix B.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.ops.delta_decays import Faded, fade, fade_gradients

__all__ = ["scan"]


@torch.library.custom_op("seriatim::delta_scan", mutates_args=())
def scan(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), the last state (B, H, K, V) and the states at the chunks' starts (N, K, V).

    q, k (B, T, H, K), v (B, T, H, V), beta (B, T, H, 1), log_decay (B, T, H, D); size is C, a power of two.
    """
    return _forward(q, k, v, beta, log_decay, state, size)


@scan.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    chunks = state.size(0) * state.size(1) * _count(v, size)
    return v.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(chunks, *state.shape[2:])


@torch.library.custom_op("seriatim::delta_scan_backward", mutates_args=())
def _scan_backward(
    grad_o: Tensor,
    grad_last: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    starts: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in q, k, v, beta, log_decay and the state."""
    like = q
    grad_o, q, k, v, beta, log_decay = (_chunks(x, size) for x in (grad_o, q, k, v, beta, log_decay))
    faded = fade(q, k, log_decay)
    below, erased, written = _solve(faded, beta, v)
    u = torch.baddbmm(written, erased, starts, alpha=-1)
    grad_u = faded.reads.mT @ grad_o
    grad_starts = torch.baddbmm(faded.q_before.mT @ grad_o, erased.mT, grad_u, alpha=-1)
    grad_ends, grad_state = _scan_back(faded, erased, grad_starts, grad_last.flatten(0, 1), _count(like, size))
    grad_u = torch.baddbmm(grad_u, faded.k_after, grad_ends)
    grad_right = torch.linalg.solve_triangular(below.mT, grad_u, upper=True, unitriangular=True)
    error = v - faded.k_before @ starts - faded.overlaps @ u
    grad_v = beta * grad_right
    grad_faded = Faded(
        reads=grad_o @ u.mT,
        overlaps=-grad_v @ u.mT,
        q_before=grad_o @ starts.mT,
        k_before=-grad_v @ starts.mT,
        k_after=u @ grad_ends.mT,
        total=(grad_ends * starts).sum(-1, keepdim=True),
    )
    grad_q, grad_k, grad_decay = fade_gradients(q, k, log_decay, grad_faded)
    grad_beta = (grad_right * error).sum(-1, keepdim=True)
    grads = (_tokens(x, like) for x in (grad_q, grad_k, grad_v, grad_beta, grad_decay))
    return *grads, grad_state.view_as(grad_last)  # type: ignore[return-value]


@_scan_backward.register_fake
def _(
    grad_o: Tensor,
    grad_last: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    starts: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (q, k, v, beta, log_decay, grad_last)
    return tuple(x.new_empty(x.shape) for x in inputs)  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.size = inputs
    ctx.save_for_backward(*tensors, output[2])


def _gradients(ctx: Any, grad_o: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, starts = ctx.saved_tensors
    if torch.is_grad_enabled():  # for second derivatives
        grads = _differentiable_gradients(inputs, grad_o, grad_last, ctx.size)
    else:
        grads = _scan_backward(grad_o, grad_last, *inputs[:-1], starts, ctx.size)
    return *grads, None


scan.register_autograd(_gradients, setup_context=_save)


def _differentiable_gradients(inputs: list[Tensor], grad_o: Tensor, grad_last: Tensor, size: int) -> tuple[Tensor, ...]:
    """The gradients as functions that can be differentiated again, from intermediates that are all kept in memory."""
    # Views, because the inputs themselves may depend on one another: the gradients here are those in each alone.
    inputs = [z.view_as(z) if z.requires_grad else z.detach().requires_grad_() for z in inputs]
    q, k, v, beta, log_decay, state = inputs
    o, last, _ = _forward(q, k, v, beta, log_decay, state, size)
    return torch.autograd.grad((o, last), inputs, (grad_o, grad_last), create_graph=True)


def _count(like: Tensor, size: int) -> int:
    """The chunks of `size` tokens that cover the time of `like` (B, T, ...)."""
    return -(-like.size(1) // size)


def _chunks(x: Tensor, size: int) -> Tensor:
    """(B, T, H, F) -> (N, C, F), padded with tokens that write nothing and fade nothing."""
    x, count = x.transpose(1, 2), _count(x, size)
    if x.size(2) < count * size:
        x = F.pad(x, (0, 0, 0, count * size - x.size(2)))
    return x.unflatten(2, (count, size)).flatten(0, 2)


def _tokens(x: Tensor, like: Tensor) -> Tensor:
    """(N, C, F) -> (B, T, H, F) with the B, T and H of `like`, in memory of its own."""
    batch, time, heads = like.shape[:3]
    x = x.unflatten(0, (batch, heads, _count(like, x.size(1)))).flatten(2, 3)
    return x[:, :, :time].transpose(1, 2).contiguous()


def _solve(faded: Faded, beta: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The system's matrix less the identity, and its solutions for the faded keys and for v: u_k and u_v."""
    below = beta * faded.overlaps
    right = torch.cat([beta * faded.k_before, beta * v], -1)
    solved = torch.linalg.solve_triangular(below, right, upper=False, unitriangular=True)
    return below, *solved.split([faded.k_before.size(-1), v.size(-1)], -1)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor, state: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `scan` returns, in operations that can be differentiated."""
    like = q
    q, k, v, beta, log_decay = (_chunks(x, size) for x in (q, k, v, beta, log_decay))
    faded = fade(q, k, log_decay)
    _, erased, written = _solve(faded, beta, v)
    S, starts, writes = state.flatten(0, 1), [], []
    along = (faded.total, faded.k_after, erased, written)
    for total, k_after, erases, new in _each_chunk(_count(like, size), *along):
        starts.append(S)
        writes.append(torch.baddbmm(new, erases, S, alpha=-1))
        S = torch.baddbmm(total * S, k_after.mT, writes[-1])
    before, u = torch.stack(starts, 1).flatten(0, 1), torch.stack(writes, 1).flatten(0, 1)
    o = torch.baddbmm(faded.reads @ u, faded.q_before, before)
    return _tokens(o, like), S.view_as(state), before


def _scan_back(
    faded: Faded, erased: Tensor, grad_starts: Tensor, grad_last: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The gradients in the states at the chunks' ends (N, K, V) and in the first state (B H, K, V).

    grad_starts (N, K, V): the gradients in the states at the starts that do not come by way of the ends.
    """
    ends, along = [], (faded.total, faded.k_after, erased, grad_starts)
    for total, k_after, erases, direct in reversed(_each_chunk(count, *along)):
        ends.append(grad_last)
        grad_last = torch.baddbmm(direct + total * grad_last, erases.mT, k_after @ grad_last, alpha=-1)
    return torch.stack(ends[::-1], 1).flatten(0, 1), grad_last


def _each_chunk(count: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The (B H, ...) of one chunk after another, from tensors (N, ...)."""
    return list(zip(*(x.unflatten(0, (x.size(0) // count, count)).unbind(1) for x in tensors), strict=True))
