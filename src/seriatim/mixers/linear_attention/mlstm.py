"""The mLSTM of xLSTM."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import SeriatimError, check_divisible, check_one_of, check_size
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.mixers.linear_attention.base import with_ones
from seriatim.nn.pointwise import gated, silu
from seriatim.nn.short_conv import ShortConv

__all__ = ["MLSTM", "MLSTMState", "MatrixCellState", "matrix_cell"]

EPSILON = 1e-5  # of the norm
SMALL = 1e-6  # the least the cell divides by: beside weights of 1, the sum may cancel


class MatrixCellState(NamedTuple):
    """What the cell carries. The stabiliser is a gauge: e^stabiliser times the memory is what counts."""

    memory: Tensor  # (B, H, K, V + 1): C, and n as one more column
    stabiliser: Tensor  # (B, H), -inf before anything was read


class MLSTMState(NamedTuple):
    """What is carried from segment to segment."""

    tail: Tensor  # (B, conv_size - 1, E): the last inputs of the convolution
    cell: MatrixCellState


class MLSTM(Mixer):
    r"""mLSTM: an LSTM whose cell is a matrix and whose input gate is an exponential, with the block around it.

    .. math:: C_t = f_t C_{t-1} + i_t k_t v_t^\top, \quad n_t = f_t n_{t-1} + i_t k_t, \quad
              h_t = \frac{C_t^\top q_t}{\max(|n_t \cdot q_t|, 1)}

    .. math:: i_t = e^{w_i \cdot (q, k, v)_t + b_i}, \quad f_t = \sigma(w_f \cdot (q, k, v)_t + b_f)

    for each head, where for :math:`(u, z) = W_{up} x_t` and :math:`c = \mathrm{silu}(\mathrm{conv}(u))` the query and
    the key, divided by :math:`\sqrt{K}`, come from c and the value from u, by matrices with blocks of `block_size`; and

    .. math:: y_t = W_{down} ((\mathrm{norm}(h_t) + s \odot c) \odot \mathrm{silu}(z))

    The norm is over each head. :func:`matrix_cell` computes the cell for gates of any size.

    Args:
        dim: features in and out.
        heads: memories; expand * dim must be a multiple.
        expand: channels E = expand * dim.
        conv_size: taps of the short convolution.
        block_size: of the matrices that make queries, keys and values; expand * dim must be a multiple.
        forget_gate: "sigmoid", or "exp" for an exponential in its place.
        blocks: of the whole model, by which the initial output is divided.

    Source: Beck et al., 2024, arXiv:2405.04517, section 2.3 and appendix A.3 and A.4; initialisation of its official
        code.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        expand: int = 2,
        conv_size: int = 4,
        block_size: int = 4,
        forget_gate: str = "sigmoid",
        blocks: int = 1,
    ):
        super().__init__()
        check_size(dim=dim, expand=expand, conv_size=conv_size, blocks=blocks)
        check_one_of("forget_gate", forget_gate, ("sigmoid", "exp"))
        self.inner = expand * dim
        for name, value in (("heads", heads), ("block_size", block_size)):
            check_size(**{name: value})
            if self.inner % value:
                raise SeriatimError(f"{name} is {value}; expand * dim = {self.inner} must be a multiple of it")
        check_divisible(inner=self.inner, heads=heads)
        self.dim, self.heads, self.expand, self.conv_size = dim, heads, expand, conv_size
        self.block_size, self.forget_gate, self.blocks = block_size, forget_gate, blocks
        self.head_dim = self.inner // heads
        self.up = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv = ShortConv(self.inner, conv_size)
        shape = (self.inner // block_size, block_size, block_size)
        self.query, self.key, self.value = (nn.Parameter(torch.empty(shape)) for _ in range(3))
        self.gates = nn.Linear(3 * self.inner, 2 * heads)  # input gates, forget gates
        self.norm_weight = nn.Parameter(torch.ones(self.inner))
        self.skip = nn.Parameter(torch.ones(self.inner))
        self.down = nn.Linear(self.inner, dim, bias=False)
        for weight in (self.up.weight, self.query, self.key, self.value):
            nn.init.normal_(weight, std=math.sqrt(2 / (5 * dim)))
        nn.init.normal_(self.down.weight, std=2 / blocks / math.sqrt(dim))
        nn.init.zeros_(self.gates.weight)
        forget = torch.linspace(3, 6, heads)
        if forget_gate == "exp":  # to begin with, the same gates
            forget = F.logsigmoid(forget)
        with torch.no_grad():
            self.gates.bias.copy_(torch.cat([0.1 * torch.randn(heads), forget]))

    def init_state(self, batch: int) -> MLSTMState:
        memory = self.new_state(batch, self.heads, self.head_dim, self.head_dim + 1)
        cell = MatrixCellState(memory, self.new_state(batch, self.heads, fill=float("-inf")))
        return MLSTMState(self.new_state(batch, self.conv_size - 1, self.inner), cell)

    def mix(
        self, x: Tensor, state: MLSTMState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, MLSTMState]:
        u, z = self.up(x).chunk(2, -1)
        c, tail = self.conv(u, state.tail, reset, lengths)
        c = silu(c)
        q, k, v = self._blockwise(self.query, c), self._blockwise(self.key, c), self._blockwise(self.value, u)
        log_input, log_forget = self._log_gates(q, k, v)
        if lengths is not None:  # a padded token neither writes nor fades
            real = ragged.real_tokens(lengths, x.size(1))
            log_input, log_forget = ragged.mask(log_input, real, float("-inf")), ragged.mask(log_forget, real)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (q, k, v))
        h, cell = matrix_cell(q, k, v, log_input, log_forget, state.cell, reset)
        h = F.layer_norm(h, (self.head_dim,), eps=EPSILON).flatten(-2) * self.norm_weight
        return self.down(gated(torch.addcmul(h, self.skip, c), z)), MLSTMState(tail, cell)

    def _blockwise(self, weight: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("btni,noi->btno", x.unflatten(-1, (-1, self.block_size)), weight).flatten(-2)

    def _log_gates(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms of the gates, (B, T, H) each, in float32 at least."""
        parts = zip((q, k, v), self.gates.weight.split(self.inner, 1), strict=True)
        # So few outputs are faster with the weights on the left, and without q, k and v put together.
        products = torch.stack([weight @ z.flatten(0, 1).T for z, weight in parts]).sum(0)
        i, f = (products.T.unflatten(0, q.shape[:2]) + self.gates.bias).chunk(2, -1)
        wide = state_dtype(i.dtype)
        i, f = i.to(wide), f.to(wide)
        return i, F.logsigmoid(f) if self.forget_gate == "sigmoid" else f


@linear_in("v")
def matrix_cell(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_input: Tensor,
    log_forget: Tensor,
    state: MatrixCellState,
    reset: Tensor | None = None,
) -> tuple[Tensor, MatrixCellState]:
    r"""The cell of mLSTM for gates of any size: a matrix scan of what is left when e^m is taken off.

    .. math:: m_t = \max(m_{t-1} + \log f_t, \log i_t), \quad f'_t = e^{\log f_t + m_{t-1} - m_t}, \quad
              i'_t = e^{\log i_t - m_t}, \quad h_t = \frac{C_t'^\top q_t}{\max(|n'_t \cdot q_t|, e^{-m_t})}

    Args:
        q, k: (B, T, H, K); k is divided by the root of K here.
        v: (B, T, H, V).
        log_input, log_forget: (B, T, H), in float32 at least; an input gate of -inf writes nothing.
        state: what an earlier call returned, or zeros and a stabiliser of -inf.
        reset: (B, T) bool, the cell is emptied before this token.

    Returns:
        h (B, T, H, V) in the dtype of v, and the state after the last token.
    """
    stabiliser, last = ops.max_scan(log_forget, log_input, state=state.stabiliser, reset=reset)
    m = stabiliser.clamp(min=torch.finfo(stabiliser.dtype).min)  # never (-inf) - (-inf)
    before = torch.cat([state.stabiliser[:, None], stabiliser], 1)[:, : q.size(1)]
    log_decay = (log_forget + (before - m)).clamp(max=0)  # above 0 by rounding alone
    written = k * ((log_input - m).exp() * q.size(-1) ** -0.5)[..., None]
    o, memory = ops.matrix_scan(q, written, with_ones(v.to(m.dtype)), log_decay, state=state.memory, reset=reset)
    # Both sides of the fraction times e^m where that is below 1, so that no power is above 1.
    o = o * m.clamp(max=0).exp()[..., None]
    divisor = torch.maximum(o[..., -1].abs(), (-m.clamp(min=0)).exp()).clamp(min=SMALL)
    return (o[..., :-1] / divisor[..., None]).to(v.dtype), MatrixCellState(memory, last)


def reference(m: MLSTM, x: Tensor) -> Tensor:
    """The paper's equations without a stabiliser, one sequence, token and head at a time."""
    assert m.conv.bias is not None
    w_i, w_f = m.gates.weight.chunk(2)
    b_i, b_f = m.gates.bias.chunk(2)
    w_q, w_k, w_v = (torch.block_diag(*blocks) for blocks in (m.query, m.key, m.value))
    rows = []
    for sequence in x:
        C, n = x.new_zeros(m.heads, m.head_dim, m.head_dim), x.new_zeros(m.heads, m.head_dim)
        recent, out = [x.new_zeros(m.inner) for _ in range(m.conv_size)], []
        for token in sequence:
            u, z = (m.up.weight @ token).chunk(2)
            recent = [*recent[1:], u]
            c = (m.conv.weight * torch.stack(recent, 1)).sum(1) + m.conv.bias
            c = c * torch.sigmoid(c)
            q, k, v, h = w_q @ c, w_k @ c, w_v @ u, []
            i = torch.exp(w_i @ torch.cat([q, k, v]) + b_i)
            f = w_f @ torch.cat([q, k, v]) + b_f
            f = torch.sigmoid(f) if m.forget_gate == "sigmoid" else torch.exp(f)
            for a in range(m.heads):
                part = slice(a * m.head_dim, (a + 1) * m.head_dim)
                key = k[part] / m.head_dim**0.5
                C[a], n[a] = f[a] * C[a] + i[a] * torch.outer(v[part], key), f[a] * n[a] + i[a] * key
                read = C[a] @ q[part] / max(abs(n[a] @ q[part]), 1)
                h.append((read - read.mean()) / (read.var(correction=0) + EPSILON).sqrt())
            y = torch.cat(h) * m.norm_weight + m.skip * c
            out.append(m.down.weight @ (y * z * torch.sigmoid(z)))
        rows.append(torch.stack(out))
    return torch.stack(rows)
