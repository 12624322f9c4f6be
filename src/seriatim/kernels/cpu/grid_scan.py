"""What PyTorch sees of the grid scan's kernels: two operators, and the op on top of them.

Dimensions: B batch, R rows, C columns, H heads, K key dim, V value dim.
"""

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.operator import differentiable
from seriatim.kernels.cpu.source.grid_layout import backward_room, forward_room

__all__ = ["grid_scan", "segment_rows"]

_WIDEST = 16  # float32s of a vector, on any machine
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_forward, _backward = Kernel("grid_scan", "forward"), Kernel("grid_scan", "backward")


def grid_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor | None = None,
    *,
    scale: float = 1.0,
    state: tuple[Tensor, Tensor] | None = None,
    keep_state: bool = True,
    flips: tuple[int, ...] = (),
) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """Shapes as in :func:`seriatim.ops.grid_scan.grid_scan`, all float32."""
    left, top = (None, None) if state is None else state
    mark = mark if scale == 1 else scale * mark
    gates = source, transition.flatten(-2), mark
    o, right, bottom = forward(q, k, v, *gates, left, top, 1 in flips, 2 in flips, keep_state)
    if direct is not None:
        o = o + (scale * direct * (q * k).sum(-1)).unsqueeze(-1) * v
    return o, (right, bottom) if keep_state else None


def segment_rows(height: int, columns: int, keys: int) -> int:
    """Rows whose cells the second level cache holds; more where what is kept between segments would be more yet."""
    cell = 4 * _WIDEST * keys
    fitting = largest_block(lambda count: backward_room(count, columns, count, cell), caches().second, _ROWS)
    return max(1, min(height, max(fitting, isqrt(height))))


@torch.library.custom_op("seriatim::cpu_grid_scan", mutates_args=())
def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    left: Tensor | None,
    top: Tensor | None,
    upwards: bool,
    leftwards: bool,
    keep_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """o (B, R, C, H, V), and what leaves at the right and at the bottom, empty if it is not kept."""
    batch, _, columns, heads, keys = q.shape
    o, right, bottom = _results(q, v, keep_state)
    inputs = [rows(z) for z in (q, k, v, source, transition, mark, left, top)]
    borders = (right, bottom) if keep_state else (None, None)
    _forward(batch * heads, *inputs, upwards, leftwards, o, *borders, scratch=forward_room(columns, _WIDEST * keys))
    return o, right, bottom


@torch.library.custom_op("seriatim::cpu_grid_scan_backward", mutates_args=())
def backward(
    grad_o: Tensor,
    grad_right: Tensor | None,
    grad_bottom: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    left: Tensor | None,
    top: Tensor | None,
    upwards: bool,
    leftwards: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of all tensors; those of left and top are empty if there are none."""
    batch, height, columns, heads, keys = q.shape
    grad_q, grad_k, grad_v, grad_source, grad_transition, grad_mark = grads = [
        torch.zeros_like(z, memory_format=torch.contiguous_format) for z in (q, k, v, source, transition, mark)
    ]
    borders = [None if z is None else z.new_empty(z.shape) for z in (left, top)]
    segment = segment_rows(height, columns, keys)
    inputs = [rows(z) for z in (grad_o, grad_right, grad_bottom, q, k, v, source, transition, mark, left, top)]
    scratch = backward_room(height, columns, segment, _WIDEST * keys)
    _backward(batch * heads, *inputs, upwards, leftwards, segment, *grads, *borders, scratch=scratch)
    grad_left, grad_top = (q.new_empty(0) if z is None else z for z in borders)
    return grad_q, grad_k, grad_v, grad_source, grad_transition, grad_mark, grad_left, grad_top


def _results(q: Tensor, v: Tensor, keep_state: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what `forward` returns."""
    batch, height, columns, heads, keys = q.shape
    sides = (height, columns) if keep_state else (0, 0)
    right, bottom = (q.new_empty(batch, side, heads, keys, v.size(-1)) for side in sides)
    return v.new_empty(v.shape), right, bottom


@forward.register_fake
def _(q: Tensor, k: Any, v: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _results(q, v, others[-1])


@backward.register_fake
def _(grad_o: Any, grad_right: Any, grad_bottom: Any, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(inputs[0].new_empty(0 if z is None else z.shape) for z in inputs[:-2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:-3])
    *ctx.flips, ctx.keeps = inputs[-3:]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_o: Tensor | None, *borders: Tensor | None) -> tuple[Tensor | None, ...]:
    inputs = ctx.saved_tensors
    grad_o = torch.zeros_like(inputs[2]) if grad_o is None else grad_o
    grads = backward(grad_o, *(borders if ctx.keeps else (None, None)), *inputs, *ctx.flips)
    return *(None if z is None else grad for z, grad in zip(inputs, grads, strict=True)), None, None, None


differentiable(forward, _save, _gradients)
