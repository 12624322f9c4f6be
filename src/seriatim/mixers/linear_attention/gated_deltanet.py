"""Gated DeltaNet."""

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_size
from seriatim.mixers.linear_attention.base import EIGENVALUES, DeltaInputs, DeltaMixer, init_projections
from seriatim.nn.decay import HeadDecay
from seriatim.nn.norms import RMSNorm
from seriatim.nn.pointwise import gated
from seriatim.nn.short_conv import ShortConv

__all__ = ["GatedDeltaNet"]


class GatedDeltaNet(DeltaMixer):
    r"""Gated DeltaNet: a matrix memory that fades as a whole, then replaces what it holds under a key.

    .. math:: (q, k, v)_t = \mathrm{silu}(\mathrm{conv}(W x)_t), \quad q_t \leftarrow q_t / |q_t|, \quad
              k_t \leftarrow k_t / |k_t|, \quad \beta_t = b\, \sigma(W_\beta x_t), \quad
              \alpha_t = \exp(-e^A \mathrm{softplus}(W_\alpha x_t + c))

    .. math:: S_t = \alpha_t (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \quad
              o_t = S_t^\top q_t / \sqrt{K}, \quad y_t = W_o (\mathrm{rms}(o_t) \odot \mathrm{silu}(W_r x_t))

    with one alpha and one beta a head. The transition's eigenvalues are alpha_t and alpha_t (1 - beta_t): b = 1 keeps
    them in [0, 1], b = 2 in [-1, 1]. Lengths are sqrt(sum of squares + 1e-6), the norm is over each head, the
    convolution has no bias; e^A begins uniform in (0, 16), softplus(c) log-uniform between 0.001 and 0.1.

    Args:
        dim: features in and out.
        heads: memories.
        head_dim: K, width of a key; None is 3/4 dim / heads, rounded down, at least 1.
        expand_v: how many times as wide values are.
        conv_size: taps of the short convolution.
        eigenvalues: "positive" for b = 1, "signed" for b = 2.

    Source: Yang et al., 2024, arXiv:2412.06464, section 3; widths and initialisation of its official code.
        Eigenvalues: Grazzi et al., 2024, arXiv:2411.12537.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        head_dim: int | None = None,
        expand_v: int = 2,
        conv_size: int = 4,
        eigenvalues: str = "positive",
    ):
        super().__init__()
        check_size(dim=dim, heads=heads, expand_v=expand_v, conv_size=conv_size)
        if head_dim is not None:
            check_size(head_dim=head_dim)
        check_one_of("eigenvalues", eigenvalues, EIGENVALUES)
        self.dim, self.heads, self.head_dim, self.expand_v = dim, heads, head_dim, expand_v
        self.conv_size, self.eigenvalues = conv_size, eigenvalues
        self.key_dim = head_dim or max(1, 3 * dim // (4 * heads))
        self.value_dim = expand_v * self.key_dim
        keys, values = heads * self.key_dim, heads * self.value_dim
        self.qkv = nn.Linear(dim, 2 * keys + values, bias=False)
        self.beta = nn.Linear(dim, heads, bias=False)
        self.decay = HeadDecay(dim, heads)
        self.conv = ShortConv(2 * keys + values, conv_size, bias=False)
        self.out_gate = nn.Linear(dim, values, bias=False)
        self.norm = RMSNorm(self.value_dim)
        self.out = nn.Linear(values, dim, bias=False)
        others = [layer.weight for layer in (self.beta, self.decay.step, self.out_gate, self.out)]
        init_projections(*self.qkv.weight.split([keys, keys, values]), *others)

    def project(self, x: Tensor) -> DeltaInputs:
        beta = EIGENVALUES[self.eigenvalues] * self.beta(x).sigmoid().unsqueeze(2)
        return DeltaInputs(self.qkv(x), beta, self.decay(x))

    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(gated(self.norm(o).flatten(-2), self.out_gate(x)))


def reference(m: GatedDeltaNet, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time."""
    largest = {"positive": 1, "signed": 2}[m.eigenvalues]
    keys, values = m.heads * m.key_dim, m.heads * m.value_dim
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(m.key_dim, m.value_dim) for _ in range(m.heads)], []
        recent = [x.new_zeros(2 * keys + values) for _ in range(m.conv.size)]
        for u in sequence:
            recent = [*recent[1:], m.qkv.weight @ u]
            mixed = (m.conv.weight * torch.stack(recent, 1)).sum(1)
            q, k, v = (z.view(m.heads, -1) for z in (mixed * torch.sigmoid(mixed)).split([keys, keys, values]))
            beta, o = largest * torch.sigmoid(m.beta.weight @ u), []
            step = torch.log1p(torch.exp(m.decay.step.weight @ u + m.decay.step_bias))
            alpha = torch.exp(-torch.exp(m.decay.A_log) * step)
            for h in range(m.heads):
                query = q[h] / (q[h] @ q[h] + 1e-6).sqrt()
                key = k[h] / (k[h] @ k[h] + 1e-6).sqrt()
                transition = alpha[h] * (torch.eye(m.key_dim, dtype=x.dtype) - beta[h] * torch.outer(key, key))
                memory[h] = transition @ memory[h] + beta[h] * torch.outer(key, v[h])
                read = memory[h].T @ query / m.key_dim**0.5
                o.append(read / (read.square().mean() + 1e-5).sqrt() * m.norm.weight)
            g = m.out_gate.weight @ u
            out.append(m.out.weight @ (torch.cat(o) * g * torch.sigmoid(g)))
        rows.append(torch.stack(out))
    return torch.stack(rows)
