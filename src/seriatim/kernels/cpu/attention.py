"""What PyTorch sees of attention's kernels: two operators, and the product on top of them.

Dimensions: B batch, T time, H heads, G key-value heads, K key dim, V value dim, C slots of what is carried.
"""

from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.operator import differentiable
from seriatim.kernels.cpu.source.attention_layout import QUERIES, backward_size, forward_size

__all__ = ["QUERIES", "attention"]

_KEYS = (64, 128, 256, 512)
_EVER = 1 << 40  # a window that hides nothing
_forward, _backward = Kernel("attention", "forward"), Kernel("attention", "backward")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    until: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    window: int | None,
) -> Tensor:
    """Each token's mean of the values it sees: its document's up to itself, the last `window`, and carried ones.

    Args:
        q: (B, T, H, K) float32.
        k: (B, T, G, K); each of the G heads serves H / G heads of q.
        v: (B, T, G, V).
        keys: (B, C, G, K), what is carried.
        values: (B, C, G, V).
        until: (B, C) int64, slot c is seen by the tokens before this one that stand before all resets.
        reset: (B, T) bool.
        lengths: (B,) int64; the outputs of the padding are 0.
        window: None is all.

    Returns:
        (B, T, H, V).
    """
    out, _ = forward(q, k, v, keys, values, until, reset, lengths, _EVER if window is None else window)
    return out


def block_of_keys(inner: int, columns: int) -> int:
    """How many keys are taken at a time: scores, their gradients, keys and values stay in the second level cache."""
    return largest_block(lambda keys: 4 * keys * (2 * QUERIES + inner + columns), caches().second // 2, _KEYS)


def _parts(heads: int, blocks: int, threads: int) -> int:
    """Into how many parts the queries of a head of keys are shared out, going back: so many that no thread is idle."""
    return max(1, min(-(-threads // max(heads, 1)), blocks))


@torch.library.custom_op("seriatim::cpu_attention", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    until: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor]:
    """out (B, T, H, V), and every query's largest score and sum of weights (B, H, 2, T)."""
    results = _results(q, v)
    batch, time, heads, inner = q.shape
    inputs = [rows(z) for z in (q, k, v, keys, values, until, reset, lengths)]
    items, block = batch * heads * -(-time // QUERIES), block_of_keys(inner, v.size(3))
    _forward(items, *inputs, window, inner**-0.5, block, *results, scratch=forward_size(inner, block))
    return results


@torch.library.custom_op("seriatim::cpu_attention_backward", mutates_args=())
def backward(
    grad_out: Tensor,
    out: Tensor,
    sums: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    until: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    window: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of q, k, v and of the keys and values carried."""
    heads = k.size(0) * k.size(2)
    parts = _parts(heads, q.size(2) // k.size(2) * -(-q.size(1) // QUERIES), torch.get_num_threads())
    grad_q, split = _like(q)[0], [z.new_empty(parts, *z.shape) for z in (k, v, keys, values)]
    inputs = [rows(z) for z in (grad_out, out, sums, q, k, v, keys, values, until, reset, lengths)]
    inner, block = q.size(3), block_of_keys(q.size(3), v.size(3))
    scratch = backward_size(inner, v.size(3), block)
    _backward(parts * heads, *inputs, window, inner**-0.5, block, grad_q, *split, scratch=scratch)
    return grad_q, *(z[0] if parts == 1 else z.sum(0) for z in split)


def _results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    batch, time, heads, _ = q.shape
    return q.new_empty(batch, time, heads, v.size(3)), q.new_empty(batch, heads, 2, time)


def _like(*tensors: Tensor) -> Any:
    return tuple(z.new_empty(z.shape) for z in tensors)


@forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, until: Any, reset: Any, lengths: Any, window: int
) -> tuple[Tensor, Tensor]:
    return _results(q, v)


@backward.register_fake
def _(grad_out: Any, out: Any, sums: Any, *inputs: Any) -> Any:
    return _like(*inputs[:5])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    return *backward(grad_out, *ctx.saved_tensors, ctx.window), None, None, None, None


differentiable(forward, _save, _gradients)
