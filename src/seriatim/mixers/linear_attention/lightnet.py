"""LightNet: linear attention with an additive decay, over sequences and grids."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_divisible, check_positive
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.core.state import State
from seriatim.nn.log_sum import document_log_sum, running_log_sum
from seriatim.nn.lrpe import check_shape, coordinates, lrpe, lrpe_angles
from seriatim.nn.norms import RMSNorm

__all__ = ["LightNet", "LightNetState"]


class LightNetState(NamedTuple):
    """What a causal LightNet has read of the present document."""

    length: Tensor  # (B,) int64, tokens
    log_total: Tensor  # (B, H, K), the log of the sum of the exponentials of its keys; -inf before any
    memory: Tensor  # (B, H, K, V), or 2 K where there are positions


class LightNet(Mixer):
    r"""Linear attention whose keys are softmaxed over time: a decay that is additive, not a product.

    .. math:: z_t = \log \sum_{s \le t} e^{k_s}, \quad
              S_t = \mathrm{diag}(e^{z_{t-1} - z_t}) S_{t-1} + e^{k_t - z_t} v_t^\top, \quad
              o_t = S_t^\top \mathrm{silu}(q_t)

    .. math:: y_t = W_o (\mathrm{rms}(o_t) \odot \sigma(W_2 W_1 x_t))

    so that every key feature keeps the mean of the values, weighted by its exponentials. Not causal, the sums run over
    the whole document: one pass serves data of any number of dimensions, which needs no order. Queries and keys then
    know their places by MD-LRPE (:func:`seriatim.nn.lrpe.lrpe`).

    Args:
        dim: features in and out.
        heads: memories; dim must be a multiple.
        causal: whether tokens see only what was before them.
        shape: the sizes of all axes but the first, of data read row by row: [] for a sequence, [width] for an image,
            [height, width] for a film. The first axis is as long as it needs to be.
        lrpe: whether queries and keys have positions; dim / heads must then be a multiple of the axes.
        base: of the positions' wavelengths.

    Source: Qin et al., 2024, arXiv:2405.21022, sections 3 and 4; initialisation of flash-linear-attention.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        causal: bool = True,
        shape: Sequence[int] = (),
        lrpe: bool = True,
        base: float = 10000.0,
    ):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        check_positive(base=base)
        check_shape(shape)
        if lrpe:
            check_divisible(head_dim=dim // heads, axes=len(shape) + 1)
        self.dim, self.heads, self.causal, self.shape = dim, heads, causal, list(shape)
        self.lrpe, self.base, self.head_dim = lrpe, base, dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.gate_down = nn.Linear(dim, self.head_dim, bias=False)
        self.gate_up = nn.Linear(self.head_dim, dim, bias=False)
        self.norm = RMSNorm(dim)
        self.out = nn.Linear(dim, dim, bias=False)
        others = [layer.weight for layer in (self.gate_down, self.gate_up, self.out)]
        for weight in (*self.qkv.weight.split(dim), *others):
            nn.init.xavier_uniform_(weight, gain=2**-2.5)

    def init_state(self, batch: int) -> State:
        if not self.causal:
            return ()
        rows = self.head_dim * (2 if self.lrpe else 1)
        log_total = self.new_state(batch, self.heads, self.head_dim, fill=float("-inf"))
        length = torch.zeros(batch, dtype=torch.long, device=log_total.device)
        return LightNetState(length, log_total, self.new_state(batch, self.heads, rows, self.head_dim))

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in self.qkv(x).chunk(3, -1))
        q, keys = F.silu(q), k.to(state_dtype(k.dtype))
        if lengths is not None:
            keys = ragged.mask(keys, ragged.real_tokens(lengths, x.size(1)), float("-inf"))
        if self.causal:
            o, state = self._scan(q, keys, v, state, reset, lengths)
        else:
            o = self._sum(q, keys, v, reset)
        gate = torch.sigmoid(self.gate_up(self.gate_down(x)))
        return self.out(self.norm(o.flatten(-2)) * gate), state

    def _scan(
        self, q: Tensor, keys: Tensor, v: Tensor, state: LightNetState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, LightNetState]:
        positions = ragged.positions(reset, state.length, q.size(1))
        read = torch.cat([state.length[:, None], positions + 1], 1)
        length = read[:, -1] if lengths is None else read.gather(1, lengths.long()[:, None]).squeeze(1)
        total = running_log_sum(keys, state.log_total, reset)
        totals = torch.cat([state.log_total.unsqueeze(1), total], 1)
        before = totals[:, :-1] if reset is None else ragged.mask(totals[:, :-1], ~reset, float("-inf"))
        log_decay = (before - total).masked_fill(before == float("-inf"), 0.0)  # there is nothing to fade
        q, weights = self._placed(q, _softmax(keys, total), positions)
        log_decay = torch.cat([log_decay, log_decay], -1) if self.lrpe else log_decay
        o, memory = ops.matrix_scan(q, weights, v, log_decay, state=state.memory, reset=reset)
        return o, LightNetState(length, totals[:, -1].clone(), memory)

    @linear_in("v")
    def _sum(self, q: Tensor, keys: Tensor, v: Tensor, reset: Tensor | None) -> Tensor:
        positions = ragged.positions(reset, torch.zeros(q.size(0), dtype=torch.long, device=q.device), q.size(1))
        q, weights = self._placed(q, _softmax(keys, document_log_sum(keys, reset)), positions)
        if reset is None:
            memory = torch.einsum("bthk,bthv->bhkv", weights, v.to(weights.dtype))
            return torch.einsum("bthk,bhkv->bthv", q.to(weights.dtype), memory).to(v.dtype)
        past, _ = ops.matrix_scan(q, weights, v, reset=reset)
        ends = F.pad(reset, (0, 1))[:, 1:].flip(1)
        future, _ = ops.matrix_scan(q.flip(1), weights.flip(1), v.flip(1), reset=ends)
        return past + future.flip(1) - ((q * weights).sum(-1, keepdim=True) * v).to(v.dtype)

    def _placed(self, q: Tensor, weights: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        if not self.lrpe:
            return q, weights
        angles = lrpe_angles(coordinates(positions, self.shape), self.heads, self.head_dim, self.base, weights.dtype)
        return lrpe(q, angles), lrpe(weights, angles)


def _softmax(keys: Tensor, total: Tensor) -> Tensor:
    return (keys - total.masked_fill(total == float("-inf"), 0.0)).exp()


def reference(m: LightNet, x: Tensor) -> Tensor:
    """Each key feature's mean of the values, weighted by its exponentials, one sequence, token and head at a time."""
    w_q, w_k, w_v = m.qkv.weight.split(m.dim)
    axes = len(m.shape) + 1
    rows = []
    for sequence in x:
        q, k, v = sequence @ w_q.T, sequence @ w_k.T, sequence @ w_v.T
        places, out = [_place(t, m.shape) for t in range(len(sequence))], []
        for t, u in enumerate(sequence):
            seen = range(t + 1 if m.causal else len(sequence))
            o = []
            for h in range(m.heads):
                read = x.new_zeros(m.head_dim)
                for i in range(m.head_dim):
                    f = h * m.head_dim + i
                    each = m.head_dim // axes if m.lrpe else m.head_dim
                    theta = m.base ** (-2 * (h * m.head_dim + i % each) / m.dim) if m.lrpe else 0.0
                    axis = i // each
                    total = sum(torch.exp(k[s, f]) for s in seen)
                    for s in seen:
                        turn = torch.cos(x.new_tensor((places[t][axis] - places[s][axis]) * theta))
                        query = q[t, f] * torch.sigmoid(q[t, f])
                        value = v[s, h * m.head_dim : (h + 1) * m.head_dim]
                        read = read + query * turn * torch.exp(k[s, f]) / total * value
                o.append(read)
            read = torch.cat(o)
            read = read / (read.square().mean() + 1e-5).sqrt() * m.norm.weight
            out.append(m.out.weight @ (read * torch.sigmoid(m.gate_up.weight @ (m.gate_down.weight @ u))))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _place(index: int, shape: Sequence[int]) -> list[int]:
    """The coordinates of the token of that index, read row by row."""
    place = []
    for size in reversed(shape):
        index, rest = divmod(index, size)
        place.append(rest)
    return [index, *reversed(place)]
