"""What PyTorch sees of delta_scan's kernels: two operators, and on top of them that op and dplr_scan.

A chunk has 16 tokens: what is done inside it (scores, a triangular inverse) grows with its size, and products with the
memory, K x V, are near the machine's peak with 16 rows already. With a decay for every key feature its tokens then need
no division into blocks.

Dimensions: B batch, T time, H heads, K key dim, V value dim.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.memory import room
from seriatim.kernels.cpu.operator import differentiable, unread, wants_gradient
from seriatim.kernels.cpu.source.delta_layout import CHUNK, layout

__all__ = ["columns", "delta_scan", "dplr_scan", "segment"]

_CHUNKS = (1, 2, 4, 8, 16)  # between two states that are kept
_COLUMNS = 16  # the fewest values that are worth a work item of their own
_forward, _backward = Kernel("delta_scan", "forward"), Kernel("delta_scan", "backward")


def delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    *,
    scale: float = 1.0,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in :func:`seriatim.ops.delta_scan.delta_scan`, all float32."""
    if log_decay is not None and log_decay.dim() == 3:
        log_decay = log_decay.unsqueeze(-1)
    return _run(q, k, v, beta, log_decay, None, None, state, reset, scale)


def dplr_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    read: Tensor,
    write: Tensor,
    *,
    scale: float = 1.0,
    state: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shapes as in :func:`seriatim.ops.dplr_scan.dplr_scan`, all float32."""
    return _run(q, k, v, None, log_decay, read, write, state, reset, scale)


def _run(*arguments: Any) -> tuple[Tensor, Tensor]:
    """What `forward` is given, less whether it learns."""
    o, last, _ = forward(*arguments, wants_gradient(*arguments))
    return o, last


def segment(keys: int, values: int, writers: int) -> int:
    """How many chunks there are between two states that are kept for the backward pass.

    It computes so many chunks again before it goes through them backwards; what they leave fits the second level cache.
    """
    sizes = keys, values, writers
    return largest_block(lambda chunks: 4 * layout(*sizes, chunks, True)[-1], caches().second, _CHUNKS)


def columns(items: int, values: int, threads: int) -> int:
    """How many value columns a work item has. Where rows and heads are fewer than threads, they are divided."""
    parts = max(1, min(threads // max(items, 1), values // _COLUMNS))
    return min(values, -(-values // parts // _COLUMNS) * _COLUMNS)


@cache
def _layout(keys: int, values: int, writers: int, chunks: int, gradients: bool) -> tuple[Tensor, int]:
    """The layout of a thread's memory as a kernel reads it, and how many float32 it takes."""
    places = layout(keys, values, writers, chunks, gradients)
    return torch.tensor(places), places[-1]


def _writers(write: Tensor | None) -> int:
    """How many writers a token has."""
    return 1 if write is None else 2


@torch.library.custom_op("seriatim::cpu_delta_scan", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    read: Tensor | None,
    write: Tensor | None,
    state: Tensor | None,
    reset: Tensor | None,
    scale: float,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, T, H, V), the last state (B, H, K, V), and if it `learns` the states before every segment of time.

    Either beta (B, T, H), for the delta rule, or read and write (B, T, H, K), and decays for every key feature.
    """
    (batch, _, heads, keys), values = q.shape, v.size(3)
    o, last, starts = (room(q, *shape) for shape in _shapes(q, v, write, learns))
    if not o.numel() or not keys:
        return unread(o, last, starts, state)
    width, writers = columns(batch * heads, values, torch.get_num_threads()), _writers(write)
    places, scratch = _layout(keys, width, writers, 1, False)
    inputs = [rows(z) for z in (q, k, v, beta, log_decay, read, write, reset, state)]
    items = batch * heads * -(-values // width)
    _forward(items, *inputs, scale, width, segment(keys, values, writers), places, o, last, starts, scratch=scratch)
    return o, last, starts


@torch.library.custom_op("seriatim::cpu_delta_scan_backward", mutates_args=())
def backward(
    grad_o: Tensor,
    grad_last: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    log_decay: Tensor | None,
    read: Tensor | None,
    write: Tensor | None,
    reset: Tensor | None,
    starts: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v, beta, log_decay, read, write and state; empty where there is none of these."""
    (batch, _, heads, keys), values, writers = q.shape, v.size(3), _writers(write)
    width = columns(batch * heads, values, torch.get_num_threads())
    parts, chunks = -(-values // max(width, 1)), segment(keys, values, writers)
    like = (q, k, beta, log_decay, read, write)
    grads = [None if z is None else room(q, parts, *z.shape) for z in like]
    grad_v, grad_state = room(q, *v.shape), q.new_empty(batch, heads, keys, values)
    if v.numel() and keys:
        places, scratch = _layout(keys, width, writers, chunks, True)
        inputs = [rows(z) for z in (grad_o, grad_last, q, k, v, beta, log_decay, read, write, reset, starts)]
        outputs = (*grads[:2], grad_v, *grads[2:], grad_state)
        _backward(batch * heads * parts, *inputs, scale, width, chunks, places, *outputs, scratch=scratch)
    else:
        for z in (grad_v, *grads):
            if z is not None:
                z.zero_()
        grad_state.zero_() if grad_last is None else grad_state.copy_(grad_last)
    found = [q.new_empty(0) if z is None else z[0] if parts == 1 else z.sum(0) for z in grads]
    grad_q, grad_k, grad_beta, grad_decay, grad_read, grad_write = found
    return grad_q, grad_k, grad_v, grad_beta, grad_decay, grad_read, grad_write, grad_state


def _shapes(q: Tensor, v: Tensor, write: Tensor | None, learns: bool) -> tuple[tuple[int, ...], ...]:
    """Of what `forward` returns."""
    (batch, time, heads, keys), values = q.shape, v.size(3)
    count = -(-time // (CHUNK * segment(keys, values, _writers(write))))
    starts = (batch, heads, count, keys, values) if learns else (0, 0, 0, 0, 0)
    return tuple(v.shape), (batch, heads, keys, values), starts


@forward.register_fake
def _(
    q: Tensor, k: Any, v: Tensor, beta: Any, log_decay: Any, read: Any, write: Any, *others: Any
) -> tuple[Tensor, ...]:
    return tuple(q.new_empty(shape) for shape in _shapes(q, v, write, others[-1]))


@backward.register_fake
def _(grad_o: Any, grad_last: Any, *inputs: Any) -> tuple[Tensor, ...]:
    q, _, v, *_ = inputs
    state = q.new_empty(q.size(0), q.size(2), q.size(3), v.size(3))
    return *(q.new_empty(0 if z is None else z.shape) for z in inputs[:7]), state


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, state, reset, ctx.scale, _ = inputs
    ctx.save_for_backward(*tensors, reset, output[2])
    ctx.started = state is not None
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_o: Tensor | None, grad_last: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
    *tensors, reset, starts = ctx.saved_tensors
    if grad_o is None:
        grad_o = torch.zeros_like(tensors[2])
    *grads, grad_state = backward(grad_o, grad_last, *tensors, reset, starts, ctx.scale)
    given = [None if z is None else grad for z, grad in zip(tensors, grads, strict=True)]
    return *given, grad_state if ctx.started else None, None, None, None


differentiable(forward, _save, _gradients)
