"""What PyTorch sees of the cells' kernels: two operators, and the op on top of them.

For the backward pass the gates are kept, in the place of the inputs they were made from, which are as large; of the
states beside the hidden one only those before every chunk, from which the others follow without a product.

Dimensions: B batch, T time, G gates, H heads, D head dim, S states of a cell.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seriatim.kernels.cpu.caches import caches, largest_block
from seriatim.kernels.cpu.launch import Kernel, rows
from seriatim.kernels.cpu.memory import room
from seriatim.kernels.cpu.operator import differentiable, wants_gradient

__all__ = ["cell_scan"]


class _Cell(NamedTuple):
    number: int  # in the kernels
    slots: int  # what its gates amount to
    states: int


_CELLS = {
    "elman": _Cell(0, 1, 1),
    "lstm": _Cell(1, 4, 2),
    "gru": _Cell(2, 4, 1),
    "slstm": _Cell(3, 4, 4),
    "slstm_exp": _Cell(4, 4, 4),
}
_EXTRAS = 3  # arrays of a token that the backward pass computes once more, at most
_WIDTH = 16  # numbers of the widest vectors: rows are padded to whole ones
_ROWS = (8, 16, 24, 32, 64)  # that a work item may have: multiples of what fits the registers
_CHUNKS = (4, 8, 16)
_packed, _forward, _backward = (Kernel("cell_scan", name) for name in ("packed", "forward", "backward"))


def cell_scan(
    cell: str,
    inputs: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    *,
    state: Any,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Shapes as in :func:`seriatim.ops.cell_scan.cell_scan`, all float32. The outputs of padded tokens are 0."""
    if inputs.numel() == 0:
        batch, time, _, heads, dim = inputs.shape
        return inputs.new_zeros(batch, time, heads, dim), state
    keep = wants_gradient(inputs, recurrent, bias, *state)
    out, last, _, _ = forward(cell, inputs, recurrent, bias, torch.stack(state), reset, lengths, keep)
    return out, type(state)(*last.unbind(0))


@cache
def row_block(cell: str, dim: int) -> int:
    """The rows of the batch with which a step stays in the first level cache.

    Weights beyond the second level cache are read from memory at every step: there the rows fill that cache instead.
    """
    size, wide = _CELLS[cell], _padded(dim)
    fits = 4 * size.slots * dim * wide <= caches().second
    room = caches().first if fits else caches().second // 2
    return largest_block(lambda count: 4 * count * wide * (size.slots + 2 * size.states), room, _ROWS)


@cache
def chunk(cell: str, dim: int) -> int:
    """The tokens whose slots and states the backward pass has at once, in the second level cache."""
    of_token = 4 * row_block(cell, dim) * _padded(dim) * (_CELLS[cell].slots + _CELLS[cell].states + _EXTRAS)
    return largest_block(lambda count: count * of_token, caches().second, _CHUNKS)


def rows_of_item(cell: str, batch: int, heads: int, dim: int, threads: int) -> int:
    """A row block, or fewer: as many items as threads where there are so many rows, and all of a size."""
    items = max(-(-batch // row_block(cell, dim)), min(-(-threads // heads), batch))
    return -(-batch // items)


def _padded(dim: int) -> int:
    return -(-dim // _WIDTH) * _WIDTH


@torch.library.custom_op("seriatim::cpu_cell_scan", mutates_args=())
def forward(
    cell: str,
    inputs: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    first: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h (B, T, H, D) and the last state (S, B, H, D); for the backward pass the slots and the states before chunks."""
    batch, _, _, heads, dim = inputs.shape
    out, last, kept, borders = _results(cell, inputs, first, keep)
    if lengths is not None:
        out.zero_()
    most = rows_of_item(cell, batch, heads, dim, torch.get_num_threads())
    arguments = [rows(z) for z in (inputs, _pack(recurrent, True), bias, first, reset, lengths)]
    results = [out, last, kept if keep else None, borders if keep else None]
    scratch = (2 * _CELLS[cell].states + _CELLS[cell].slots) * most * _padded(dim)
    _forward(
        heads * -(-batch // most), _CELLS[cell].number, *arguments, most, chunk(cell, dim), *results, scratch=scratch
    )
    return out, last, kept, borders


@torch.library.custom_op("seriatim::cpu_cell_scan_backward", mutates_args=())
def backward(
    cell: str,
    grad_out: Tensor | None,
    grad_last: Tensor | None,
    recurrent: Tensor,
    out: Tensor,
    kept: Tensor,
    borders: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
    biased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of inputs, recurrent, bias and the first state. That of the bias is empty where there is none."""
    batch, time, heads, dim = out.shape
    size, gates, wide = _CELLS[cell], recurrent.size(0), _padded(dim)
    most = rows_of_item(cell, batch, heads, dim, torch.get_num_threads())
    items = heads * -(-batch // most)
    grad_inputs, grad_first = room(out, batch, time, gates, heads, dim), out.new_empty(size.states, batch, heads, dim)
    if lengths is not None:
        grad_inputs.zero_()
    grad_weights = out.new_zeros(items, gates, dim, dim)
    grad_bias = out.new_zeros(items, gates, wide) if biased else None
    arguments = [rows(z) for z in (grad_out, grad_last, _pack(recurrent, False), kept, borders, out, reset, lengths)]
    results = [grad_inputs, grad_first, grad_weights, grad_bias]
    tokens = chunk(cell, dim)
    scratch = (tokens * (size.slots + size.states + _EXTRAS) + 3 * size.states) * most * wide
    _backward(items, size.number, *arguments, most, tokens, *results, scratch=scratch)
    grad_recurrent = _of_heads(grad_weights, heads).contiguous()
    if grad_bias is None:
        return grad_inputs, grad_recurrent, out.new_empty(0, 0, 0), grad_first
    return grad_inputs, grad_recurrent, _of_heads(grad_bias, heads)[..., :dim].contiguous(), grad_first


def _of_heads(parts: Tensor, heads: int) -> Tensor:
    """(G, H, ...): the sums over the items of each head. parts (items, G, ...)."""
    parts = parts.unflatten(0, (heads, -1))
    return (parts[:, 0] if parts.size(1) == 1 else parts.sum(1)).transpose(0, 1)


def _pack(recurrent: Tensor, transposed: bool) -> Tensor:
    """(H, G, ...): the matrices as the kernels read them."""
    gates, heads, dim, _ = recurrent.shape
    weights = recurrent.new_empty(heads, gates, dim * _padded(dim))
    _packed(heads * gates, rows(recurrent), int(transposed), weights)
    return weights


def _results(cell: str, inputs: Tensor, first: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for what `forward` returns."""
    batch, time, _, heads, dim = inputs.shape
    out, last = room(inputs, batch, time, heads, dim), inputs.new_empty(first.shape)
    if not keep:
        return out, last, inputs.new_empty(0, 0, 0, 0), inputs.new_empty(0, 0, 0, 0)
    size, row = _CELLS[cell], batch * _padded(dim)
    kept = room(inputs, heads, time, size.slots, row)
    return out, last, kept, inputs.new_empty(heads, -(-time // chunk(cell, int(dim))), size.states, row)


@forward.register_fake
def _(
    cell: str, inputs: Tensor, recurrent: Tensor, bias: Any, first: Tensor, reset: Any, lengths: Any, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _results(cell, inputs, first, keep)


@backward.register_fake
def _(
    cell: str,
    grad_out: Any,
    grad_last: Any,
    recurrent: Tensor,
    out: Tensor,
    kept: Tensor,
    borders: Tensor,
    reset: Any,
    lengths: Any,
    biased: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    (batch, time, heads, dim), gates = out.shape, recurrent.size(0)
    return (
        out.new_empty(batch, time, gates, heads, dim),
        recurrent.new_empty(recurrent.shape),
        out.new_empty((gates, heads, dim) if biased else (0, 0, 0)),
        out.new_empty(borders.size(2), batch, heads, dim),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    cell, _, recurrent, bias, _, reset, lengths, _ = inputs
    out, _, kept, borders = output
    ctx.cell, ctx.biased = cell, bias is not None
    ctx.mark_non_differentiable(kept, borders)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(recurrent, out, kept, borders, reset, lengths)


def _gradients(ctx: Any, grad_out: Tensor | None, grad_last: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    found = backward(ctx.cell, grad_out, grad_last, *ctx.saved_tensors, ctx.biased)
    grad_inputs, grad_recurrent, grad_bias, grad_first = found
    return None, grad_inputs, grad_recurrent, grad_bias if ctx.biased else None, grad_first, None, None, None


differentiable(forward, _save, _gradients)
