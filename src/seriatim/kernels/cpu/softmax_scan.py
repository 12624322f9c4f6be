"""What PyTorch sees of the softmax scan's kernels: two operators, and the op on top of them.

Dimensions: B batch, T time, H heads, D value dim, N chunks.
"""

from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.operator import differentiable

__all__ = ["softmax_scan"]

_CHUNKS = (16, 32, 64, 128, 256)
_forward, _backward = Kernel("softmax_scan", "forward"), Kernel("softmax_scan", "backward")


def softmax_scan(
    scores: Tensor, values: Tensor, *, state: Any, reset: Tensor | None = None
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Shapes as in :func:`seriatim.ops.softmax_scan.softmax_scan`, all float32."""
    if scores.size(1) == 0:
        return torch.zeros_like(values), state
    out, *last, _ = forward(scores, values, *state, reset)
    return out, type(state)(*last)


def chunk_size(dim: int) -> int:
    """How many tokens are read at a time: what is noted of them for the way back stays in the first level cache."""
    return largest_block(lambda chunk: 4 * chunk * (dim + 6) + 20 * dim, caches().first, _CHUNKS)


@torch.library.custom_op("seriatim::cpu_softmax_scan", mutates_args=())
def forward(
    scores: Tensor, values: Tensor, maximum: Tensor, total: Tensor, weighted: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out (B, T, H, D), the last state, and the states at the beginnings of the chunks, (B, N, H, D + 2)."""
    batch, _, heads, dim = values.shape
    chunk, results = chunk_size(dim), _results(values)
    inputs = [rows(z) for z in (scores, values, maximum, total, weighted, reset)]
    _forward(batch * heads, *inputs, chunk, *results, scratch=6 * chunk + dim)
    return results


@torch.library.custom_op("seriatim::cpu_softmax_scan_backward", mutates_args=())
def backward(
    grad_out: Tensor,
    grad_maximum: Tensor,
    grad_total: Tensor,
    grad_weighted: Tensor,
    scores: Tensor,
    values: Tensor,
    kept: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of scores, values and the state."""
    batch, _, heads, dim = values.shape
    chunk, results = chunk_size(dim), _gradient_results(scores, values)
    gradients = (grad_out, grad_maximum, grad_total, grad_weighted)
    inputs = [rows(z) for z in (*gradients, scores, values, kept, reset)]
    _backward(batch * heads, *inputs, chunk, *results, scratch=6 * chunk + dim * (chunk + 2))
    return results


def _results(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the output, the last state and the states kept."""
    batch, time, heads, dim = values.shape
    chunks = -(-time // chunk_size(dim))
    maximum, total = values.new_empty(batch, heads), values.new_empty(batch, heads)
    kept = values.new_empty(batch, chunks, heads, dim + 2)
    return values.new_empty(values.shape), maximum, total, values.new_empty(batch, heads, dim), kept


def _gradient_results(scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients."""
    batch, _, heads, dim = values.shape
    maximum, total = values.new_empty(batch, heads), values.new_empty(batch, heads)
    return (
        scores.new_empty(scores.shape),
        values.new_empty(values.shape),
        maximum,
        total,
        values.new_empty(batch, heads, dim),
    )


@forward.register_fake
def _(scores: Tensor, values: Tensor, maximum: Tensor, total: Tensor, weighted: Tensor, reset: Any) -> Any:
    return _results(values)


@backward.register_fake
def _(
    grad_out: Any, grad_m: Any, grad_c: Any, grad_w: Any, scores: Tensor, values: Tensor, kept: Any, reset: Any
) -> Any:
    return _gradient_results(scores, values)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    scores, values, *_, reset = inputs
    ctx.save_for_backward(scores, values, output[-1], reset)


def _gradients(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    return *backward(*grads[:-1], *ctx.saved_tensors), None


differentiable(forward, _save, _gradients)
