"""A grid's recurrence by blocks: the parallel path of :mod:`seriatim.ops.grid_scan`.

Neighbouring blocks of nodes are merged, two and two, from single nodes up to whole blocks, in logarithmic time: a block
is the sums over all paths through it, from edges and nodes to edges and nodes. Inside a block the result is gated
attention; from block to block the recurrence goes on over anti-diagonals. Products of transitions only, never a
quotient, so any transition is right, zero and negative included.

Dimensions: B batch, R rows, C columns, H heads, K key dim, V value dim, Z = B H, n nodes of a block. Source: Pöppel et
al., 2025, arXiv:2506.11997, section 4.1.2, appendices A.2 and A.4.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["Border", "merged", "nothing"]

ALONE = 16  # the longest side of a grid, in nodes, that is one block: its gates take memory of the fourth power
SIDE = 8  # of the blocks of a larger grid

Border = tuple[Tensor, Tensor]  # (B, R, H, K, V) along a column and (B, C, H, K, V) along a row


class Blocks(NamedTuple):
    """All sums over paths through blocks (Z, rows, columns, ...), x along rows (left to right) and y along columns.

    `yx` is to what leaves at the bottom from what enters at the left, and so on: (..., edges out, edges in).
    """

    xx: Tensor
    xy: Tensor
    yx: Tensor
    yy: Tensor
    to_x: Tensor  # (..., edges out, n): from a node to what leaves at the right
    to_y: Tensor
    from_x: Tensor  # (..., n, edges in): from what enters at the left to a node
    from_y: Tensor
    gate: Tensor  # (..., n, n): from node to node


def merged(
    q: Float[Tensor, "B R C H K"],
    k: Float[Tensor, "B R C H K"],
    v: Float[Tensor, "B R C H V"],
    source: Float[Tensor, "B R C H 2"],
    transition: Float[Tensor, "B R C H 2 2"],
    mark: Float[Tensor, "B R C H 2"],
    direct: Float[Tensor, "B R C H"] | None = None,
    *,
    scale: float = 1.0,
    state: Border | None = None,
    keep_state: bool = True,
) -> tuple[Float[Tensor, "B R C H V"], Border | None]:
    """As :func:`seriatim.ops.grid_scan.reference`, by merging blocks."""
    batch, rows, columns, heads = q.shape[:4]
    if not v.numel() or not q.numel():
        return 0 * v, (nothing(q, v) if state is None else state)
    longest = ALONE if max(rows, columns) <= ALONE else SIDE
    height, width = (min(longest, 1 << (size - 1).bit_length()) for size in (rows, columns))
    pad = (-rows % height, -columns % width)
    direct = torch.zeros_like(mark[..., 0]) if direct is None else direct
    source, mark, direct = (_grid(z, pad) for z in (source, mark, direct))
    blocks = _single_nodes(source, _grid(transition, pad, transparent=True), mark, direct)
    while blocks.gate.size(1) > (rows + pad[0]) // height or blocks.gate.size(2) > (columns + pad[1]) // width:
        if blocks.gate.size(2) > (columns + pad[1]) // width:
            blocks = _merge(_every(blocks, 2, 0), _every(blocks, 2, 1))
        if blocks.gate.size(1) > (rows + pad[0]) // height:
            blocks = _turned(_merge(_turned(_every(blocks, 1, 0)), _turned(_every(blocks, 1, 1))))
    order = _order(height, width).to(q.device)
    q, k, v = (_nodes(_grid(z, pad), height, width)[..., order, :] for z in (q * scale, k, v))
    o = (blocks.gate * (q @ k.mT)) @ v
    borders = None
    if keep_state or state is not None or blocks.gate.size(1) > 1 or blocks.gate.size(2) > 1:
        o, borders = _between(blocks, q, k, v, o, None if state is None else _cut(state, pad, height, width))
    o = o[..., order.argsort(), :].unflatten(-2, (height, width)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    o = o[:, :rows, :columns].unflatten(0, (batch, heads)).permute(0, 2, 3, 1, 4)
    if borders is None:
        return o, None
    right, bottom = (z.flatten(1, 2).unflatten(0, (batch, heads)).transpose(1, 2) for z in borders)
    return o, (right[:, :rows], bottom[:, :columns])


def _single_nodes(source: Tensor, transition: Tensor, mark: Tensor, direct: Tensor) -> Blocks:
    ((xx, xy), (yx, yy)) = (part.unbind(-1) for part in transition.unbind(-2))
    parts = (xx, xy, yx, yy, *source.unbind(-1), *mark.unbind(-1), direct)
    return Blocks(*(part[..., None, None] for part in parts))


def _every(blocks: Blocks, axis: int, first: int) -> Blocks:
    """Every second block along the rows (axis 2) or the columns (axis 1)."""
    return Blocks(*(part[:, :, first::2] if axis == 2 else part[:, first::2] for part in blocks))


def _turned(b: Blocks) -> Blocks:
    """The same with x and y exchanged."""
    return Blocks(b.yy, b.yx, b.xy, b.xx, b.to_y, b.to_x, b.from_y, b.from_x, b.gate)


def _merge(a: Blocks, b: Blocks) -> Blocks:
    """Blocks a with the blocks b at their right: what leaves a at the right enters b."""
    return Blocks(
        xx=b.xx @ a.xx,
        xy=torch.cat([b.xx @ a.xy, b.xy], -1),
        yx=torch.cat([a.yx, b.yx @ a.xx], -2),
        yy=_lower(a.yy, b.yx @ a.xy, b.yy),
        to_x=torch.cat([b.xx @ a.to_x, b.to_x], -1),
        to_y=_lower(a.to_y, b.yx @ a.to_x, b.to_y),
        from_x=torch.cat([a.from_x, b.from_x @ a.xx], -2),
        from_y=_lower(a.from_y, b.from_x @ a.xy, b.from_y),
        gate=_lower(a.gate, b.from_x @ a.to_x, b.gate),
    )


def _lower(first: Tensor, across: Tensor, second: Tensor) -> Tensor:
    """The matrix of blocks [[first, 0], [across, second]]."""
    return torch.cat([F.pad(first, (0, second.size(-1))), torch.cat([across, second], -1)], -2)


def _between(blocks: Blocks, q: Tensor, k: Tensor, v: Tensor, o: Tensor, state: Border | None) -> tuple[Tensor, Border]:
    """Adds to o what comes from other blocks. State and borders: (Z, blocks, edges, K, V) at the sides of the grid."""
    rows, columns = blocks.gate.shape[1:3]
    right_new = torch.einsum("zrcen,zrcnk,zrcnv->zrcekv", blocks.to_x, k, v)
    down_new = torch.einsum("zrcen,zrcnk,zrcnv->zrcekv", blocks.to_y, k, v)
    if state is None and rows == columns == 1:
        return o, (right_new[:, :, -1], down_new[:, -1])
    if state is None:
        state = torch.zeros_like(right_new[:, :, -1]), torch.zeros_like(down_new[:, -1])
    lefts, tops = list(state[0].unbind(1)), list(state[1].unbind(1))
    entered: dict[tuple[int, int], Border] = {}
    for diagonal in range(rows + columns - 1):
        r = list(range(max(0, diagonal - columns + 1), min(rows, diagonal + 1)))
        c = [diagonal - row for row in r]
        left, top = torch.stack([lefts[row] for row in r], 1), torch.stack([tops[column] for column in c], 1)
        b = Blocks(*(part[:, r, c] for part in blocks))
        rights = _apply(b.xx, left) + _apply(b.xy, top) + right_new[:, r, c]
        downs = _apply(b.yx, left) + _apply(b.yy, top) + down_new[:, r, c]
        for index, (row, column) in enumerate(zip(r, c, strict=True)):
            entered[row, column] = left[:, index], top[:, index]
            lefts[row], tops[column] = rights[:, index], downs[:, index]
    for part, side in ((blocks.from_x, 0), (blocks.from_y, 1)):
        cells = torch.stack(
            [torch.stack([entered[row, column][side] for column in range(columns)], 1) for row in range(rows)], 1
        )
        o = o + torch.einsum("zrcne,zrcnk,zrcekv->zrcnv", part, q, cells)
    return o, (torch.stack(lefts, 1), torch.stack(tops, 1))


def _apply(part: Tensor, cells: Tensor) -> Tensor:
    """(Z, blocks, out, in) on (Z, blocks, in, K, V)."""
    return (part @ cells.flatten(3)).unflatten(-1, cells.shape[3:])


def nothing(q: Tensor, v: Tensor) -> Border:
    """What enters a grid where nothing does."""
    batch, rows, columns, heads, keys = q.shape
    return q.new_zeros(batch, rows, heads, keys, v.size(-1)), q.new_zeros(batch, columns, heads, keys, v.size(-1))


def _grid(x: Tensor, pad: tuple[int, int], transparent: bool = False) -> Tensor:
    """(B, R, C, H, ...) -> (Z, rows, columns, ...), padded by nodes of zeros, or that hand all straight on."""
    x = x.movedim(3, 1).flatten(0, 1)
    x = F.pad(x, (*[0] * (2 * x.dim() - 6), 0, pad[1], 0, pad[0]))
    if not transparent or not any(pad):
        return x
    rows, columns = x.size(1) - pad[0], x.size(2) - pad[1]
    outside = torch.ones(x.shape[1:3], dtype=torch.bool, device=x.device)
    outside[:rows, :columns] = False
    return x + outside[..., None, None] * torch.eye(2, dtype=x.dtype, device=x.device)


def _nodes(x: Tensor, height: int, width: int) -> Tensor:
    """(Z, rows, columns, F) -> (Z, blocks of rows, blocks of columns, n, F), row by row."""
    x = x.unflatten(2, (-1, width)).unflatten(1, (-1, height))
    return x.transpose(2, 3).flatten(3, 4)


def _order(height: int, width: int) -> Tensor:
    """The nodes of a block, numbered row by row, in the order in which merging puts them."""
    order = torch.arange(height * width).view(height, width, 1)
    while order.size(0) > 1 or order.size(1) > 1:
        if order.size(1) > 1:
            order = torch.cat([order[:, 0::2], order[:, 1::2]], -1)
        if order.size(0) > 1:
            order = torch.cat([order[0::2], order[1::2]], -1)
    return order.view(-1)


def _cut(state: Border, pad: tuple[int, int], height: int, width: int) -> Border:
    """(B, R or C, H, K, V) -> (Z, blocks, edges, K, V)."""
    left, top = (z.transpose(1, 2).flatten(0, 1) for z in state)
    left, top = F.pad(left, (0, 0, 0, 0, 0, pad[0])), F.pad(top, (0, 0, 0, 0, 0, pad[1]))
    return left.unflatten(1, (-1, height)), top.unflatten(1, (-1, width))
