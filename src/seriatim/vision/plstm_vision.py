"""pLSTM on images."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.errors import SeriatimError, check_divisible, check_one_of, check_size
from seriatim.core.mixer import state_dtype
from seriatim.vision.base import VisionBackbone, init_small

__all__ = ["GridPLSTM", "PLSTMVision", "reference"]

FLIPS: tuple[tuple[int, ...], ...] = ((), (1,), (2,), (1, 2))  # the axes that edges lead along backwards
BIASES = {"source": -4.0, "transition": 1.0, "mark": -4.0}  # of a new model
DIRECT_BIAS, ANGLES, ANGLE_SCALE, STEEPNESS, EPSILON = -6.0, 2.0, 0.5, 5.0, 1e-5
MODES = ("P", "D")


class Gates(NamedTuple):
    """Of a grid (B, R, C, 4 directions, H, ...), as `grid_scan` takes them."""

    source: Tensor
    transition: Tensor
    mark: Tensor


class GridPLSTM(nn.Module):
    r"""pLSTM on a grid: a memory on every edge, from every corner to the opposite one, added up.

    .. math:: o_{rc} = \sum_{d} \mathrm{grid\_scan}_d(q / \sqrt{K}, k, v; S_d, T_d, M_d)_{rc}
              + D (q^\top k / \sqrt{K}) v, \quad y = W_o (w_n \odot \mathrm{rms}(o))

    With :math:`S, M, D` sigmoids and :math:`\gamma` the tanh of 5 times a linear map of the node, for each direction d
    and head. In the P-mode a signal goes along a line, :math:`\alpha = \sigma(a + w^\top x / 2 dim)` to the right:

    .. math:: T = \gamma \begin{pmatrix} \alpha & \alpha \\ 1 - \alpha & 1 - \alpha \end{pmatrix}, \quad
              S = s (\alpha, 1 - \alpha)

    and the marks of both incoming edges are one. In the D-mode it spreads to all that is right of it and below: there
    are two sources, two marks, and three transitions; none leads from an edge to the right into one that goes down.

    In the P-mode the paper gives T but not S; the official code's down gates are one minus those to the right, decay
    and source included, so that nothing decays. Here both decay, as in equation 10, and S is split as T is.

    Args:
        dim: features in and out; a multiple of heads.
        heads: memories.
        mode: "P" (directed propagation) or "D" (diffusive distribution).

    Source: Pöppel et al., 2025, arXiv:2506.11997, sections 4.2 and 4.3.1, appendices A.7, B.1 and D.1.
    """

    def __init__(self, dim: int, heads: int = 3, mode: str = "P"):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        check_one_of("mode", mode, MODES)
        self.dim, self.heads, self.mode = dim, heads, mode
        self.counts = (1, 1, 1) if mode == "P" else (2, 3, 2)  # of sources, transitions and marks
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim, bias=False)
        self.gates = nn.Linear(dim, sum(self.counts) * len(FLIPS) * heads)
        self.direct = nn.Linear(dim, heads)
        self.angle = nn.Linear(dim, len(FLIPS) * heads) if mode == "P" else None
        self.norm = nn.Parameter(torch.ones(heads, dim // heads))
        init_small(self.qkv, self.out)
        for layer in (self.gates, self.direct, self.angle):
            if layer is not None:
                nn.init.zeros_(layer.weight)
        nn.init.constant_(self.direct.bias, DIRECT_BIAS)
        biases = [bias for bias, count in zip(BIASES.values(), self.counts, strict=True) for _ in range(count)]
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor(biases).repeat_interleave(len(FLIPS) * heads))
            if self.angle is not None:
                angles = torch.linspace(-ANGLES, ANGLES, heads) if heads > 1 else torch.zeros(1)
                self.angle.bias.copy_(angles.repeat(len(FLIPS)))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, rows, columns, dim) to the same shape."""
        if x.dim() != 4 or x.size(-1) != self.dim:
            raise SeriatimError(f"x has shape {tuple(x.shape)}; it must be (batch, rows, columns, {self.dim})")
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in self.qkv(x).chunk(3, -1))
        q = q * (self.dim // self.heads) ** -0.5
        total = (torch.sigmoid(self.direct(x)) * (q * k).sum(-1))[..., None] * v
        for axes, *gates in zip(FLIPS, *(z.unbind(3) for z in self.gates_of(x)), strict=True):
            total = total + ops.grid_scan(q, k, v, *gates, keep_state=False, flips=axes)[0]
        return self.out((F.rms_norm(total, total.shape[-1:], eps=EPSILON) * self.norm).flatten(-2))

    def gates_of(self, x: Tensor) -> Gates:
        """What every node does, in every direction."""
        gates = self.gates(x)
        parts = gates.to(state_dtype(gates.dtype)).unflatten(-1, (-1, len(FLIPS), self.heads)).unbind(3)
        sources, transitions, marks = torch.stack(parts, -1).split(self.counts, -1)
        source, transition, mark = sources.sigmoid(), torch.tanh(STEEPNESS * transitions), marks.sigmoid()
        if self.angle is None:
            right, down, turn = transition.unbind(-1)
            matrix = torch.stack([right, turn, torch.zeros_like(turn), down], -1).unflatten(-1, (2, 2))
            return Gates(source, matrix, mark)
        turned = F.linear(x, ANGLE_SCALE / self.dim * self.angle.weight, self.angle.bias)
        alpha = torch.sigmoid(turned.to(source.dtype)).unflatten(-1, (len(FLIPS), self.heads))
        column = torch.stack([alpha, 1 - alpha], -1)
        matrix = (transition * column)[..., None].expand(*column.shape, 2)
        return Gates(source * column, matrix, mark.expand_as(column))


class PLSTMVision(VisionBackbone):
    """pLSTM-Vis: a vision transformer with a `GridPLSTM` where that has attention, in P- and D-mode by turns.

    Args:
        dim: features of a patch; a multiple of heads.
        depth: blocks; the first is in P-mode.
        heads: memories of a block.
        patch: pixels of a patch's side.
        channels: of the images.
        size: pixels of a side of the images that positions are learned on; None is no positions.
        modes: the modes by turns, such as "PD", or "P" for one only.

    Source: Pöppel et al., 2025, arXiv:2506.11997, appendix B.1, with the initialisation of D.1.
    """

    def __init__(
        self,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        patch: int = 16,
        channels: int = 3,
        size: int | None = 192,
        modes: str = "PD",
    ):
        check_size(depth=depth)
        if not modes or set(modes) - set(MODES):
            raise SeriatimError(f"modes is {modes!r}; it must be P and D by turns, such as 'PD'")
        layers = [GridPLSTM(dim, heads, modes[index % len(modes)]) for index in range(depth)]
        super().__init__(dim, layers, 4.0, patch, channels, size)
        self.depth, self.heads, self.modes = depth, heads, modes


def reference(m: GridPLSTM, x: Tensor) -> Tensor:
    """The paper's equations for a layer, one image, direction, head and node at a time."""
    return torch.stack([_one_image(m, image) for image in x])


def _one_image(m: GridPLSTM, x: Tensor) -> Tensor:
    rows, columns = x.shape[:2]
    width = m.dim // m.heads
    q, k, v = (x @ m.qkv.weight.T + m.qkv.bias).view(rows, columns, 3, m.heads, width).unbind(2)
    direct = torch.sigmoid(x @ m.direct.weight.T + m.direct.bias)
    heads = []
    for h in range(m.heads):
        total = direct[..., h, None] * (q[:, :, h] * k[:, :, h]).sum(-1, keepdim=True) * v[:, :, h]
        for d, (down, right) in enumerate([(1, 1), (-1, 1), (1, -1), (-1, -1)]):
            total = total + _one_direction(m, x, (q[:, :, h], k[:, :, h], v[:, :, h]), d, h, (down, right))
        o = total / width**0.5
        heads.append(o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt() * m.norm[h])
    return torch.cat(heads, -1) @ m.out.weight.T


def _one_direction(
    m: GridPLSTM, x: Tensor, qkv: tuple[Tensor, Tensor, Tensor], d: int, h: int, step: tuple[int, int]
) -> Tensor:
    gates = (x @ m.gates.weight.T + m.gates.bias).view(*x.shape[:2], -1, 4, m.heads)[:, :, :, d, h]
    q, k, v = qkv
    (rows, columns), (down, right) = x.shape[:2], step
    to_right: dict[tuple[int, int], Tensor] = {}  # the memory that leaves a node, by its place
    to_below: dict[tuple[int, int], Tensor] = {}
    nothing, out = x.new_zeros(k.size(-1), v.size(-1)), {}
    for r in range(rows)[::down]:
        for c in range(columns)[::right]:
            left, above = to_right.get((r, c - right), nothing), to_below.get((r - down, c), nothing)
            g, kv = gates[r, c], torch.outer(k[r, c], v[r, c])
            if m.angle is not None:
                turn = 0.5 * m.angle.weight[d * m.heads + h] @ x[r, c] / m.dim + m.angle.bias[d * m.heads + h]
                alpha, s, mark = torch.sigmoid(turn), torch.sigmoid(g[0]), torch.sigmoid(g[2])
                come = torch.tanh(5 * g[1]) * (left + above) + s * kv
                to_right[r, c], to_below[r, c] = alpha * come, (1 - alpha) * come
                out[r, c] = mark * (left + above).T @ q[r, c]
            else:
                along, across, turn = torch.tanh(5 * g[2:5])
                to_right[r, c] = along * left + turn * above + torch.sigmoid(g[0]) * kv
                to_below[r, c] = across * above + torch.sigmoid(g[1]) * kv
                out[r, c] = (torch.sigmoid(g[5]) * left + torch.sigmoid(g[6]) * above).T @ q[r, c]
    return torch.stack([torch.stack([out[r, c] for c in range(columns)]) for r in range(rows)])
