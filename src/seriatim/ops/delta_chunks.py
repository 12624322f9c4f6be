r"""The delta rule by chunks, as one node to a compiler, whose backward pass is written by hand.

A token adds W outer products to the memory. The first, of a writer w and what the token finds under its reader r, is

.. math:: w_i u_i^\top, \qquad u_i = b_i (y_i - \bar S_i^\top r_i)

with :math:`\bar S_i` the memory before it. The delta rule is that alone: r = w = k, b = beta, y = v, and r reads what
has faded. A diagonal-plus-rank-one transition reads what has not, and has b = -1, y = 0 and a second writer k, for v.

With S the state that a chunk begins with and d(j, i) the decay from after token j to what token i reads, one writer
makes

.. math:: u_i + b_i \sum_{j < i} (r_i^\top d(j, i) w_j) u_j = b_i (y_i - S^\top d(0, i) r_i).

This triangular system is solved for all chunks at once, for y and for the faded readers apart: u = u_y - u_r S. What a
second writer has written before token i, and r_i finds, is taken from y_i. Then

.. math:: S' = d(0, C) S + \sum_j d(j, C) w_j u_j^\top, \qquad
    o_i = S^\top d(0, i) q_i + \sum_{j \le i} (q_i^\top d(j, i) w_j) u_j,

with a second writer's sums beside these, of which only S' runs from chunk to chunk. Kept for the backward pass are the
states that the chunks begin with.

Dimensions: B batch, T time, H heads, K key dim, V value dim, D = 1 for a decay per head, else K, C tokens of a chunk,
n chunks, N = B H n. Source: Yang et al., 2024, arXiv:2406.06484, section 3 and appendix B.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.ops.delta_decays import Faded, fade, fade_gradients

__all__ = ["chunk_size", "scan"]

CHUNK_PER_HEAD = 64
CHUNK_PER_KEY = 32  # the work inside a chunk grows with its logarithm, but the temporaries then leave the cache


def chunk_size(log_decay: Tensor) -> int:
    """How many tokens a chunk has for decays (B, T, H, D), a power of two: no more than cover the time."""
    size = CHUNK_PER_HEAD if log_decay.size(-1) == 1 else CHUNK_PER_KEY
    return min(size, 1 << (log_decay.size(1) - 1).bit_length())


@torch.library.custom_op("seriatim::delta_scan", mutates_args=())
def scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    beta: Tensor | None,
    read: Tensor | None,
    write: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), the last state (B, H, K, V) and the states at the chunks' starts (N, K, V).

    q, k, read, write (B, T, H, K), v (B, T, H, V), beta (B, T, H, 1), log_decay (B, T, H, D); size is C, a power of
    two. Either beta, for the delta rule, or read and write, for a transition that is diagonal plus rank one.
    """
    return _forward((q, k, v, log_decay, state, beta, read, write), size)


@scan.register_fake
def _(q: Any, k: Any, v: Tensor, log_decay: Any, state: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    chunks = state.size(0) * state.size(1) * _count(v, others[-1])
    return v.new_empty(v.shape), state.new_empty(state.shape), state.new_empty(chunks, *state.shape[2:])


@torch.library.custom_op("seriatim::delta_scan_backward", mutates_args=())
def _scan_backward(
    grad_o: Tensor,
    grad_last: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    read: Tensor | None,
    write: Tensor | None,
    starts: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in q, k, v, log_decay, the state, beta, read and write; empty where there is none of these."""
    like, tokens, grad_o = q, _tokens_of((q, k, v, log_decay, beta, read, write), size), _chunks(grad_o, size)
    faded = _fade(tokens)
    system = _solve(faded, tokens)
    u = torch.baddbmm(system.written, system.erased, starts, alpha=-1)
    sources = _sources(u, tokens)
    grad_sources = faded.reads.mT @ grad_o
    grad_starts = torch.baddbmm(faded.q_before.mT @ grad_o, system.erased.mT, grad_sources[:, :size], alpha=-1)
    grad_ends, grad_state = _scan_back(faded, system, grad_starts, grad_last.flatten(0, 1), _count(like, size))
    grad_sources = torch.baddbmm(grad_sources, faded.after, grad_ends)
    grad_u = grad_sources[:, :size]
    grad_right = torch.linalg.solve_triangular(system.below.mT, grad_u, upper=True, unitriangular=True)
    grad_target = tokens.beta * grad_right
    grad_faded = Faded(
        reads=grad_o @ sources.mT,
        overlaps=-grad_target @ sources.mT,
        q_before=grad_o @ starts.mT,
        r_before=-grad_target @ starts.mT,
        after=sources @ grad_ends.mT,
        total=(grad_ends * starts).sum(-1, keepdim=True),
    )
    grad_q, grad_r, grad_writers, grad_decay = fade_gradients(
        tokens.q, tokens.r, tokens.writers, tokens.log_decay, beta is not None, grad_faded
    )
    if beta is not None:
        error = tokens.v - faded.r_before @ starts - faded.overlaps @ u
        grad_beta = (grad_right * error).sum(-1, keepdim=True)
        found = [grad_q, grad_r + grad_writers[0], grad_target, grad_decay, grad_beta, None, None]
    else:
        grad_v = torch.baddbmm(grad_sources[:, size:], faded.overlaps[..., size:].mT, grad_target, alpha=-1)
        found = [grad_q, grad_writers[1], grad_v, grad_decay, None, grad_r, grad_writers[0]]
    grads = [q.new_empty(0) if x is None else _tokens(x, like) for x in found]
    for_q, for_k, for_v, for_decay, for_beta, for_read, for_write = grads
    return for_q, for_k, for_v, for_decay, grad_state.view_as(grad_last), for_beta, for_read, for_write


@_scan_backward.register_fake
def _(grad_o: Any, grad_last: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    grads = [grad_last.new_empty(0 if x is None else x.shape) for x in inputs[:7]]
    return *grads[:4], grad_last.new_empty(grad_last.shape), *grads[4:]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.size = inputs
    ctx.save_for_backward(*tensors, output[2])


def _gradients(ctx: Any, grad_o: Tensor, grad_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *inputs, starts = ctx.saved_tensors
    if torch.is_grad_enabled():  # for second derivatives
        return *_differentiable_gradients(inputs, grad_o, grad_last, ctx.size), None
    grads = _scan_backward(grad_o, grad_last, *inputs[:4], *inputs[5:], starts, ctx.size)
    return *(None if z is None else grad for z, grad in zip(inputs, grads, strict=True)), None


scan.register_autograd(_gradients, setup_context=_save)


def _differentiable_gradients(
    inputs: list[Tensor | None], grad_o: Tensor, grad_last: Tensor, size: int
) -> list[Tensor | None]:
    """The gradients as functions that can be differentiated again, from intermediates that are all kept in memory."""
    # Views, because the inputs themselves may depend on one another: the gradients here are those in each alone.
    given = [z if z is None or not z.requires_grad else z.view_as(z) for z in inputs]
    given = [z if z is None or z.requires_grad else z.detach().requires_grad_() for z in given]
    o, last, _ = _forward(tuple(given), size)
    tensors = [z for z in given if z is not None]
    grads = iter(torch.autograd.grad((o, last), tensors, (grad_o, grad_last), create_graph=True))
    return [None if z is None else next(grads) for z in given]


class _Tokens(NamedTuple):
    """The tokens of all chunks: who reads and who writes."""

    q: Tensor  # (N, C, K)
    r: Tensor  # (N, C, K)
    writers: Tensor  # (W, N, C, K): w, and k if that is another
    v: Tensor  # (N, C, V)
    log_decay: Tensor  # (N, C, D)
    beta: Tensor | float  # (N, C, 1)


class _System(NamedTuple):
    """The triangular system, and its solutions."""

    below: Tensor  # (N, C, C), the matrix less the identity
    erased: Tensor  # (N, C, K), u_r
    written: Tensor  # (N, C, V), u_y


def _tokens_of(given: tuple[Any, ...], size: int) -> _Tokens:
    """From what `scan` is given, less the state."""
    chunks: list[Any] = [None if x is None else _chunks(x, size) for x in given]
    q, k, v, log_decay, beta, read, write = chunks
    if beta is not None:
        return _Tokens(q, k, k.unsqueeze(0), v, log_decay, beta)
    return _Tokens(q, read, torch.stack([write, k]), v, log_decay, -1.0)


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
    return x[:, :, :time].transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _fade(tokens: _Tokens) -> Faded:
    return fade(tokens.q, tokens.r, tokens.writers, tokens.log_decay, len(tokens.writers) == 1)


def _sources(u: Tensor, tokens: _Tokens) -> Tensor:
    """What the writers write, (N, W C, V)."""
    return u if len(tokens.writers) == 1 else torch.cat([u, tokens.v], 1)


def _solve(faded: Faded, tokens: _Tokens) -> _System:
    """Solved for the faded readers and for what they should find."""
    size, beta = tokens.q.size(1), tokens.beta
    below = beta * faded.overlaps[..., :size]
    target = tokens.v if len(tokens.writers) == 1 else -faded.overlaps[..., size:] @ tokens.v
    right = torch.cat([beta * faded.r_before, beta * target], -1)
    solved = torch.linalg.solve_triangular(below, right, upper=False, unitriangular=True)
    return _System(below, *solved.split([faded.r_before.size(-1), target.size(-1)], -1))


def _forward(inputs: tuple[Any, ...], size: int) -> tuple[Tensor, Tensor, Tensor]:
    """What `scan` returns, in operations that can be differentiated."""
    q, state = inputs[0], inputs[4]
    tokens = _tokens_of((*inputs[:4], *inputs[5:]), size)
    faded = _fade(tokens)
    system = _solve(faded, tokens)
    S, starts, writes = state.flatten(0, 1), [], []
    along = (faded.total, faded.after, system.erased, system.written, tokens.v)
    for total, after, erases, new, values in _each_chunk(_count(q, size), *along):
        starts.append(S)
        u = torch.baddbmm(new, erases, S, alpha=-1)
        writes.append(u if after.size(1) == size else torch.cat([u, values], 1))
        S = torch.baddbmm(total * S, after.mT, writes[-1])
    before, sources = torch.stack(starts, 1).flatten(0, 1), torch.stack(writes, 1).flatten(0, 1)
    o = torch.baddbmm(faded.reads @ sources, faded.q_before, before)
    return _tokens(o, q), S.view_as(state), before


def _scan_back(
    faded: Faded, system: _System, grad_starts: Tensor, grad_last: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The gradients in the states at the chunks' ends (N, K, V) and in the first state (B H, K, V).

    grad_starts (N, K, V): the gradients in the states at the starts that do not come by way of the ends.
    """
    ends, along = [], (faded.total, faded.after[:, : system.below.size(1)], system.erased, grad_starts)
    for total, after, erases, direct in reversed(_each_chunk(count, *along)):
        ends.append(grad_last)
        grad_last = torch.baddbmm(direct + total * grad_last, erases.mT, after @ grad_last, alpha=-1)
    return torch.stack(ends[::-1], 1).flatten(0, 1), grad_last


def _each_chunk(count: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """The (B H, ...) of one chunk after another, from tensors (N, ...)."""
    return list(zip(*(x.unflatten(0, (x.size(0) // count, count)).unbind(1) for x in tensors), strict=True))
