"""DeltaNet."""

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_divisible, check_one_of, check_size
from seriatim.mixers.linear_attention.base import EIGENVALUES, DeltaInputs, DeltaMixer, init_projections
from seriatim.nn.norms import RMSNorm
from seriatim.nn.short_conv import ShortConv

__all__ = ["DeltaNet"]


class DeltaNet(DeltaMixer):
    r"""DeltaNet: a matrix memory that replaces what it holds under a key, instead of adding to it.

    .. math:: (q, k, v)_t = \mathrm{silu}(\mathrm{conv}(W x)_t), \quad q_t \leftarrow q_t / |q_t|, \quad
              k_t \leftarrow k_t / |k_t|, \quad \beta_t = b\, \sigma(W_\beta x_t)

    .. math:: S_t = (I - \beta_t k_t k_t^\top) S_{t-1} + \beta_t k_t v_t^\top, \quad o_t = S_t^\top q_t / \sqrt{K},
              \quad y_t = W_o\, \mathrm{rms}(o_t)

    The transition's eigenvalues are 1 and 1 - beta_t. b = 1 keeps them in [0, 1]; b = 2 lets them be negative, which
    reflects the memory and so can count modulo 2. Lengths are sqrt(sum of squares + 1e-6), the norm is over each head,
    the convolution has no bias.

    Args:
        dim: features in and out.
        heads: memories; dim must be a multiple.
        conv_size: taps of the short convolution.
        eigenvalues: "positive" for b = 1, "signed" for b = 2.

    Source: Yang et al., 2024, arXiv:2406.06484, section 3; initialisation of its official code. Eigenvalues: Grazzi
        et al., 2024, arXiv:2411.12537.
    """

    def __init__(self, dim: int, heads: int = 4, conv_size: int = 4, eigenvalues: str = "positive"):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        check_size(conv_size=conv_size)
        check_one_of("eigenvalues", eigenvalues, EIGENVALUES)
        self.dim, self.heads, self.conv_size, self.eigenvalues = dim, heads, conv_size, eigenvalues
        self.key_dim = self.value_dim = dim // heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.beta = nn.Linear(dim, heads, bias=False)
        self.conv = ShortConv(3 * dim, conv_size, bias=False)
        self.norm = RMSNorm(self.value_dim)
        self.out = nn.Linear(dim, dim, bias=False)
        init_projections(*self.qkv.weight.split(dim), self.beta.weight, self.out.weight)

    def project(self, x: Tensor) -> DeltaInputs:
        return DeltaInputs(self.qkv(x), EIGENVALUES[self.eigenvalues] * self.beta(x).sigmoid().unsqueeze(2))

    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(self.norm(o).flatten(-2))


def reference(m: DeltaNet, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time."""
    largest = {"positive": 1, "signed": 2}[m.eigenvalues]
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(m.key_dim, m.value_dim) for _ in range(m.heads)], []
        recent = [x.new_zeros(3 * m.dim) for _ in range(m.conv.size)]
        for u in sequence:
            recent = [*recent[1:], m.qkv.weight @ u]
            mixed = (m.conv.weight * torch.stack(recent, 1)).sum(1)
            q, k, v = (mixed * torch.sigmoid(mixed)).view(3, m.heads, -1)
            beta, o = largest * torch.sigmoid(m.beta.weight @ u), []
            for h in range(m.heads):
                query = q[h] / (q[h] @ q[h] + 1e-6).sqrt()
                key = k[h] / (k[h] @ k[h] + 1e-6).sqrt()
                transition = torch.eye(m.key_dim, dtype=x.dtype) - beta[h] * torch.outer(key, key)
                memory[h] = transition @ memory[h] + beta[h] * torch.outer(key, v[h])
                read = memory[h].T @ query / m.key_dim**0.5
                o.append(read / (read.square().mean() + 1e-5).sqrt() * m.norm.weight)
            out.append(m.out.weight @ torch.cat(o))
        rows.append(torch.stack(out))
    return torch.stack(rows)
