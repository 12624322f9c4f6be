"""Gated linear attention."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_divisible, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.linear_attention.base import MatrixInputs, MatrixMixer
from seriatim.nn.norms import RMSNorm
from seriatim.nn.pointwise import gated

__all__ = ["GLA"]


class GLA(MatrixMixer):
    r"""Gated linear attention: a matrix memory whose every key feature each token fades by a gate of its own.

    .. math:: S_t = \mathrm{diag}(\alpha_t) S_{t-1} + k_t v_t^\top, \quad o_t = S_t^\top q_t / \sqrt{K}, \quad
              \alpha_t = \sigma(W_2 W_1 x_t + b)^{1/\tau}

    .. math:: y_t = W_o (\mathrm{rms}(o_t) \odot \mathrm{silu}(W_r x_t + b_r))

    Keys are half as wide as values; the norm is over each head.

    Args:
        dim: features in and out; a multiple of 2 * heads.
        heads: memories.
        gate_rank: width between W_1 and W_2.
        temperature: tau; the larger, the slower a new model forgets.

    Source: Yang et al., 2024, arXiv:2312.06635, section 4; initialisation of its official code.
    """

    def __init__(self, dim: int, heads: int = 4, gate_rank: int = 16, temperature: float = 16.0):
        super().__init__()
        check_size(gate_rank=gate_rank)
        check_positive(temperature=temperature)
        check_divisible(dim=dim, heads=heads)
        check_divisible(head_dim=dim // heads, key_ratio=2)
        self.dim, self.heads, self.gate_rank, self.temperature = dim, heads, gate_rank, temperature
        self.key_dim, self.value_dim = dim // heads // 2, dim // heads
        keys = heads * self.key_dim
        self.qkv = nn.Linear(dim, 2 * keys + dim, bias=False)
        self.gate_down = nn.Linear(dim, gate_rank, bias=False)
        self.gate_up = nn.Linear(gate_rank, keys)
        self.out_gate = nn.Linear(dim, dim)
        self.norm = RMSNorm(self.value_dim)
        self.out = nn.Linear(dim, dim, bias=False)
        others = [layer.weight for layer in (self.gate_down, self.gate_up, self.out_gate, self.out)]
        for weight in (*self.qkv.weight.split([keys, keys, dim]), *others):
            nn.init.xavier_uniform_(weight, gain=2**-2.5)
        for bias in (self.gate_up.bias, self.out_gate.bias):
            nn.init.zeros_(bias)

    def project(self, x: Tensor) -> MatrixInputs:
        keys = self.heads * self.key_dim
        q, k, v = self.qkv(x).split([keys, keys, self.dim], -1)
        gate = self.gate_up(self.gate_down(x))
        log_decay = F.logsigmoid(gate.to(state_dtype(gate.dtype))) / self.temperature
        q, k, v, log_decay = (z.unflatten(-1, (self.heads, -1)) for z in (q * self.key_dim**-0.5, k, v, log_decay))
        return MatrixInputs(q, k, v, log_decay)

    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(gated(self.norm(o).flatten(-2), self.out_gate(x)))


def reference(m: GLA, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time."""
    keys = m.heads * m.key_dim
    w_q, w_k, w_v = m.qkv.weight.split([keys, keys, m.dim])
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(m.key_dim, m.value_dim) for _ in range(m.heads)], []
        for u in sequence:
            alpha = torch.sigmoid(m.gate_up.weight @ (m.gate_down.weight @ u) + m.gate_up.bias) ** (1 / m.temperature)
            o = []
            for h in range(m.heads):
                i, j = slice(h * m.key_dim, (h + 1) * m.key_dim), slice(h * m.value_dim, (h + 1) * m.value_dim)
                memory[h] = torch.diag(alpha[i]) @ memory[h] + torch.outer(w_k[i] @ u, w_v[j] @ u)
                read = memory[h].T @ (w_q[i] @ u) / m.key_dim**0.5
                o.append(read / (read.square().mean() + 1e-5).sqrt() * m.norm.weight)
            g = m.out_gate.weight @ u + m.out_gate.bias
            out.append(m.out.weight @ (torch.cat(o) * g * torch.sigmoid(g)))
        rows.append(torch.stack(out))
    return torch.stack(rows)
