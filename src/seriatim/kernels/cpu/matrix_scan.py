"""What PyTorch sees of matrix_scan's kernels: two operators, and the op on top of them.

Dimensions: B batch, T time, H heads, K key dim, V value dim.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.memory import room
from seriatim.kernels.cpu.operator import differentiable, unread, wants_gradient
from seriatim.kernels.cpu.source.matrix_layout import TOKENS_PER_KEY, backward_sizes, forward_sizes

__all__ = [
    "Blocks",
    "blocks",
    "fake",
    "fake_gradients",
    "gradients_by",
    "gradients_like",
    "matrix_scan",
    "results",
    "save",
]

_TOKENS_PER_HEAD = 32  # of a chunk: fewer load and store the state too often, more have too many scores
_CHUNKS = (1, 2, 4, 8)  # of a cell
_PAGE = 1024  # numbers of a token that lie side by side: the memory is asked for no more ahead
_COLUMNS = 16  # the fewest values that are worth a work item of their own
_forward, _backward = Kernel("matrix_scan", "forward"), Kernel("matrix_scan", "backward")


class Blocks(NamedTuple):
    """Tokens read at once, tokens between two states that are kept, heads and columns of values in a work item."""

    chunk: int
    cell: int
    heads: int
    columns: int


def matrix_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in :func:`seriatim.ops.matrix_scan.matrix_scan`, all float32."""
    o, last, _ = forward(q, k, v, log_decay, state, reset, scale, wants_gradient(q, k, v, log_decay, state))
    return o, last


@cache
def blocks(batch: int, heads: int, keys: int, values: int, per_key: bool, threads: int) -> Blocks:
    """The block sizes for any T.

    The heads of a work item take turns, a few tokens each, so that memory is read in long lines: a token's heads lie
    side by side. They are put together only as far as all threads stay as busy; where single heads are too few for the
    threads, the forward pass shares out columns.
    """
    most = _most_heads(heads, keys, values)
    together = min(range(1, most + 1), key=lambda count: (count * -(-batch * -(-heads // count) // threads), -count))
    parts = max(1, min(threads // (batch * heads), -(-values // _COLUMNS)))
    columns = min(-(-values // parts // _COLUMNS) * _COLUMNS, values)
    return Blocks(_chunk(per_key), _cell(heads, keys, values, per_key), together, columns)


def _chunk(per_key: bool) -> int:
    return TOKENS_PER_KEY if per_key else _TOKENS_PER_HEAD


def _most_heads(heads: int, keys: int, values: int) -> int:
    return max(1, min(heads, _PAGE // max(keys, values, 1)))


def _cell(heads: int, keys: int, values: int, per_key: bool) -> int:
    """Tokens between two states that are kept.

    As many as the second level cache holds of all that the backward pass reads and writes, or more if a state would
    take more memory than their keys.
    """
    token, chunk = 4 * _most_heads(heads, keys, values) * (4 * keys + 3 * values), _chunk(per_key)
    fitting = largest_block(lambda chunks: chunks * chunk * token, caches().second, _CHUNKS)
    return chunk * max(fitting, -(-values // chunk))


@torch.library.custom_op("seriatim::cpu_matrix_scan", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), the last state (B, H, K, V), and if it `learns` the states before every cell but the first."""
    o, last, states = _results(q, v, log_decay, learns, room)
    if not last.numel() or not q.size(1):
        return unread(o, last, states, state)
    size = _sizes(q, v, log_decay)
    items = q.size(0) * -(-q.size(2) // size.heads) * -(-v.size(3) // size.columns)
    scratch = sum(forward_sizes(size.chunk, q.size(3), size.columns))
    inputs = [rows(z) for z in (q, k, v, *_by_kind(log_decay), state, reset)]
    _forward(items, *inputs, scale, size.chunk, size.cell, size.columns, size.heads, o, last, states, scratch=scratch)
    return o, last, states


@torch.library.custom_op("seriatim::cpu_matrix_scan_backward", mutates_args=())
def backward(
    grad_o: Tensor,
    grad_last: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    states: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, log_decay (empty if there is none) and state."""
    grads = gradients_like(q, k, v, log_decay, room)
    grad_q, grad_k, grad_v, grad_decay, grad_state = grads
    if not grad_state.numel() or not q.size(1):
        for z in grads:
            z.zero_()
        return grads if grad_last is None else (*grads[:4], grad_last.clone())
    size = _sizes(q, v, log_decay)
    inputs = [rows(z) for z in (q, k, v, *_by_kind(log_decay), state, reset, states, grad_o, grad_last)]
    sizes = (*forward_sizes(size.chunk, q.size(3), v.size(3)),
             *backward_sizes(size.chunk, q.size(3), v.size(3), size.cell // size.chunk))  # fmt: skip
    outputs = [grad_q, grad_k, grad_v, *_by_kind(grad_decay if log_decay is not None else None), grad_state]
    items = q.size(0) * -(-q.size(2) // size.heads)
    _backward(items, *inputs, scale, size.chunk, size.cell, size.heads, *outputs, scratch=sum(sizes))
    return grads


def _sizes(q: Tensor, v: Tensor, log_decay: Tensor | None) -> Blocks:
    return blocks(q.size(0), q.size(2), q.size(3), v.size(3), _per_key(log_decay), torch.get_num_threads())


def _per_key(log_decay: Tensor | None) -> bool:
    return log_decay is not None and log_decay.dim() == 4


def _by_kind(log_decay: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The log decays as those of heads and those of keys."""
    return (None, log_decay) if _per_key(log_decay) else (log_decay, None)


def _results(q: Tensor, v: Tensor, log_decay: Tensor | None, learns: bool, new: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What `forward` returns, made by `new`."""
    cell = _cell(q.size(2), q.size(3), v.size(3), _per_key(log_decay)) if learns else None
    return results(q, v, cell, new)


def results(q: Tensor, v: Tensor, span: int | None, new: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same for any scan: a state is kept before every `span` tokens but the first, or none."""
    batch, time, heads, values, keys = *v.shape, q.size(3)
    count = -(-time // span) - 1 if span else 0
    kept = (batch, heads, count) if count > 0 else (0, heads, 0)
    return new(v, *v.shape), q.new_empty(batch, heads, keys, values), new(q, *kept, keys, values)


def gradients_like(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, new: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """What `backward` returns, made by `new`."""
    grad_q, grad_k, grad_v = (new(z, *z.shape) for z in (q, k, v))
    decay = q.new_empty(0) if log_decay is None else new(q, *log_decay.shape)
    return grad_q, grad_k, grad_v, decay, q.new_empty(v.size(0), v.size(2), q.size(3), v.size(3))


def fake(like: Tensor, *shape: int) -> Tensor:
    """In place of `room`, for a compiler."""
    return like.new_empty(shape)


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Any, state: Any, reset: Any, scale: float, learns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _results(q, v, log_decay, learns, fake)


def fake_gradients(
    grad_o: Tensor, grad_last: Any, q: Tensor, k: Tensor, v: Tensor, log_decay: Any, *others: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """In place of an operator like `backward`, for a compiler."""
    return gradients_like(q, k, v, log_decay, fake)


def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """What the backward pass of `forward` needs."""
    q, k, v, log_decay, state, reset, scale, _ = inputs
    ctx.save_for_backward(q, k, v, log_decay, state, reset, output[2])
    ctx.scale = scale
    ctx.set_materialize_grads(False)


def gradients_by(backward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor | None, ...]]:
    """Autograd's backward pass from an operator like `backward`."""

    def gradients(ctx: Any, grad_o: Tensor | None, grad_last: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        q, k, v, log_decay, state, reset, states = ctx.saved_tensors
        if grad_o is None:
            grad_o = torch.zeros_like(v)
        grads = backward(grad_o, grad_last, q, k, v, log_decay, state, reset, states, ctx.scale)
        grad_decay, grad_state = (
            z if given is not None else None for z, given in zip(grads[3:], (log_decay, state), strict=True)
        )
        return *grads[:3], grad_decay, grad_state, None, None, None

    return gradients


backward.register_fake(fake_gradients)
differentiable(forward, save, gradients_by(backward))
