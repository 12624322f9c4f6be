"""RetNet's multi-scale retention."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_divisible, check_positive, check_size
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.mixers.linear_attention.base import MatrixInputs, read_memory
from seriatim.nn.pointwise import gated
from seriatim.nn.rotary import rotate, turns
from seriatim.ops.caches import read_segment

__all__ = ["RetNet", "RetNetState"]

EPSILON = 1e-5


class RetNetState(NamedTuple):
    """What is carried from segment to segment."""

    position: Tensor  # (B,) int64: the index the next token will have in its document
    memory: Tensor  # (B, H, K, V)


class RetNet(Mixer):
    r"""Multi-scale retention: a matrix memory that fades at a constant rate, another one for each head.

    .. math:: S_t = \gamma S_{t-1} + (R_t k_t) v_t^\top, \quad o_t = S_t^\top R_t q_t / \sqrt{K}, \quad
              \gamma = 1 - 2^{-5 - h}, \; h = 0, 1, \dots

    .. math:: y_t = W_o (\mathrm{norm}(o_t) \odot \mathrm{silu}(W_g x_t))

    R_t turns each pair of features by t theta: with the decay this is xPos. The norm (of mean and variance, without
    weights) is over each head. It makes the paper's normalisation of the scores (section 2.1), factors that are common
    to a head, invisible, so there is none here.

    Args:
        dim: features in and out.
        heads: memories; dim / heads must be an even whole number.
        expand: values are expand * dim wide.
        rotary_base: theta runs from 1 to 1 / rotary_base.

    Source: Sun et al., 2023, arXiv:2307.08621, sections 2.1, 2.2 and 3.1; initialisation and theta of its official
        code.
    """

    def __init__(self, dim: int, heads: int = 4, expand: int = 2, rotary_base: float = 10000.0):
        super().__init__()
        check_size(expand=expand)
        check_positive(rotary_base=rotary_base)
        check_divisible(dim=dim, heads=heads)
        if dim // heads % 2:
            raise SeriatimError(f"dim is {dim} and heads is {heads}; dim / heads must be even for rotary positions")
        self.dim, self.heads, self.expand, self.rotary_base = dim, heads, expand, rotary_base
        self.key_dim, self.value_dim = dim // heads, expand * dim // heads
        self.qkv = nn.Linear(dim, (2 + expand) * dim, bias=False)
        self.gate = nn.Linear(dim, expand * dim, bias=False)
        self.out = nn.Linear(expand * dim, dim, bias=False)
        for weight in (*self.qkv.weight.split([dim, dim, expand * dim]), self.gate.weight):
            nn.init.xavier_uniform_(weight, gain=2**-2.5)
        nn.init.xavier_uniform_(self.out.weight)

    def init_state(self, batch: int) -> RetNetState:
        memory = self.new_state(batch, self.heads, self.key_dim, self.value_dim)
        return RetNetState(torch.zeros(batch, dtype=torch.int64, device=memory.device), memory)

    def mix(
        self, x: Tensor, state: RetNetState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, RetNetState]:
        segment = read_segment(x.size(1), state.position, reset, lengths)
        o, memory = read_memory(self.project(x, segment.position), state.memory, reset, lengths)
        o = F.layer_norm(o, (self.value_dim,), eps=EPSILON).flatten(-2)
        return self.out(gated(o, self.gate(x))), RetNetState(segment.next, memory)

    def project(self, x: Tensor, position: Tensor) -> MatrixInputs:
        """Queries and keys turned to their positions (B, T), values and decays of the tokens x (B, T, dim)."""
        q, k, v = self.qkv(x).split([self.dim, self.dim, self.expand * self.dim], -1)
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in (q * self.key_dim**-0.5, k, v))
        wide, pairs = state_dtype(x.dtype), self.key_dim // 2
        base = self.rotary_base ** (pairs / max(pairs - 1, 1))  # theta ends at 1 / rotary_base, not before it
        angles = turns(position, self.key_dim, base, wide)
        decay = torch.log1p(-(2.0 ** (-5 - torch.arange(self.heads, device=x.device, dtype=wide))))
        return MatrixInputs(rotate(q, angles), rotate(k, angles), v, decay.expand(*x.shape[:2], -1))


def reference(m: RetNet, x: Tensor) -> Tensor:
    """The paper's parallel form: every query with every key before it, one sequence and head at a time."""
    w_q, w_k, w_v = m.qkv.weight.split([m.dim, m.dim, m.expand * m.dim])
    pairs = m.key_dim // 2
    theta = [m.rotary_base ** (-i / max(pairs - 1, 1)) for i in range(pairs)]
    rows = []
    for sequence in x:
        out = []
        for n, u in enumerate(sequence):
            o = []
            for h in range(m.heads):
                i, j = slice(h * m.key_dim, (h + 1) * m.key_dim), slice(h * m.value_dim, (h + 1) * m.value_dim)
                q, gamma, total = _as_complex(w_q[i] @ u), 1 - 2.0 ** (-5 - h), x.new_zeros(m.value_dim)
                for s in range(n + 1):
                    k = _as_complex(w_k[i] @ sequence[s])
                    turned = torch.tensor([complex(0, (n - s) * angle) for angle in theta], dtype=q.dtype).exp()
                    total = total + gamma ** (n - s) * (q * turned * k.conj()).sum().real * (w_v[j] @ sequence[s])
                total = total / m.key_dim**0.5
                o.append((total - total.mean()) / (total.var(correction=0) + EPSILON).sqrt())
            g = m.gate.weight @ u
            out.append(m.out.weight @ (torch.cat(o) * g * torch.sigmoid(g)))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _as_complex(vector: Tensor) -> Tensor:
    """Features i and i + K / 2 as the real and the imaginary part of one number."""
    return torch.complex(*vector.chunk(2))
