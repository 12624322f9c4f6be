"""DeltaProduct."""

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_size
from seriatim.mixers.linear_attention.base import EIGENVALUES, DeltaInputs, DeltaMixer, init_projections
from seriatim.nn.decay import HeadDecay
from seriatim.nn.norms import RMSNorm
from seriatim.nn.pointwise import gated
from seriatim.nn.short_conv import ShortConv

__all__ = ["DeltaProduct"]


class DeltaProduct(DeltaMixer):
    r"""DeltaProduct: a matrix memory that each token corrects several times, each time under another key.

    .. math:: (q, k_1, \dots, k_n, v_1, \dots, v_n)_t = \mathrm{silu}(\mathrm{conv}(W x)_t), \quad
              q_t \leftarrow q_t / |q_t|, \quad k_{t,i} \leftarrow k_{t,i} / |k_{t,i}|, \quad
              \beta_{t,i} = b\, \sigma(W_{\beta,i}\, x_t)

    .. math:: S_{t,0} = \alpha_t S_{t-1}, \quad
              S_{t,i} = (I - \beta_{t,i} k_{t,i} k_{t,i}^\top) S_{t,i-1} + \beta_{t,i} k_{t,i} v_{t,i}^\top, \quad
              S_t = S_{t,n}

    .. math:: o_t = S_t^\top q_t / \sqrt{K}, \quad y_t = W_o (\mathrm{rms}(o_t) \odot \mathrm{silu}(W_r x_t)), \quad
              \alpha_t = \exp(-e^A \mathrm{softplus}(W_\alpha x_t + c))

    A token's transition is a product of n generalised Householder matrices: with b = 2 any rotation in n dimensions, so
    that the memory tracks states. Without the forget gate alpha is 1, without the output gate silu(...) is 1; n = 1 is
    then DeltaNet, and with both gates Gated DeltaNet. All else is as in these.

    Args:
        dim: features in and out.
        heads: memories.
        householders: n, writes a token; its time grows with n.
        head_dim: K, width of a key; None is 3/4 dim / heads, rounded down, at least 1.
        expand_v: how many times as wide values are.
        conv_size: taps of the short convolution.
        forget_gate: whether the memory fades.
        output_gate: whether what is read is gated.
        eigenvalues: "positive" for b = 1, "signed" for b = 2.

    Source: Siems et al., 2025, arXiv:2502.10297, section 3; widths and initialisation of its official code.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        householders: int = 2,
        head_dim: int | None = None,
        expand_v: int = 2,
        conv_size: int = 4,
        forget_gate: bool = True,
        output_gate: bool = True,
        eigenvalues: str = "signed",
    ):
        super().__init__()
        check_size(dim=dim, heads=heads, householders=householders, expand_v=expand_v, conv_size=conv_size)
        if head_dim is not None:
            check_size(head_dim=head_dim)
        check_one_of("eigenvalues", eigenvalues, EIGENVALUES)
        self.dim, self.heads, self.householders, self.head_dim = dim, heads, householders, head_dim
        self.expand_v, self.conv_size, self.eigenvalues = expand_v, conv_size, eigenvalues
        self.forget_gate, self.output_gate = forget_gate, output_gate
        self.key_dim = head_dim or max(1, 3 * dim // (4 * heads))
        self.value_dim = expand_v * self.key_dim
        keys, values = heads * self.key_dim, heads * self.value_dim
        widths = [keys] * (1 + householders) + [values] * householders
        self.qkv = nn.Linear(dim, sum(widths), bias=False)
        self.beta = nn.Linear(dim, householders * heads, bias=False)
        self.decay = HeadDecay(dim, heads) if forget_gate else None
        self.conv = ShortConv(sum(widths), conv_size, bias=False)
        self.out_gate = nn.Linear(dim, values, bias=False) if output_gate else None
        self.norm = RMSNorm(self.value_dim)
        self.out = nn.Linear(values, dim, bias=False)
        init_projections(*self.qkv.weight.split(widths), *self.beta.weight.split(heads), self.out.weight)
        if self.decay is not None:
            init_projections(self.decay.step.weight)
        if self.out_gate is not None:
            init_projections(self.out_gate.weight)

    def project(self, x: Tensor) -> DeltaInputs:
        beta = self.beta(x).sigmoid().unflatten(-1, (self.householders, self.heads))
        log_decay = None if self.decay is None else self.decay(x)
        return DeltaInputs(self.qkv(x), EIGENVALUES[self.eigenvalues] * beta, log_decay)

    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        o = self.norm(o).flatten(-2)
        return self.out(o if self.out_gate is None else gated(o, self.out_gate(x)))


def reference(m: DeltaProduct, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token, head and write at a time."""
    largest, n = {"positive": 1, "signed": 2}[m.eigenvalues], m.householders
    keys, values, identity = m.heads * m.key_dim, m.heads * m.value_dim, torch.eye(m.key_dim, dtype=x.dtype)
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(m.key_dim, m.value_dim) for _ in range(m.heads)], []
        recent = [x.new_zeros(len(m.qkv.weight)) for _ in range(m.conv.size)]
        for u in sequence:
            recent = [*recent[1:], m.qkv.weight @ u]
            mixed = (m.conv.weight * torch.stack(recent, 1)).sum(1)
            q, k, v = (mixed * torch.sigmoid(mixed)).split([keys, n * keys, n * values])
            q, k, v = q.view(m.heads, -1), k.view(n, m.heads, -1), v.view(n, m.heads, -1)
            beta, o = largest * torch.sigmoid(m.beta.weight @ u).view(n, m.heads), []
            for h in range(m.heads):
                if m.decay is not None:
                    step = torch.log1p(torch.exp(m.decay.step.weight[h] @ u + m.decay.step_bias[h]))
                    memory[h] = torch.exp(-torch.exp(m.decay.A_log[h]) * step) * memory[h]
                for i in range(n):
                    key = k[i, h] / (k[i, h] @ k[i, h] + 1e-6).sqrt()
                    householder = identity - beta[i, h] * torch.outer(key, key)
                    memory[h] = householder @ memory[h] + beta[i, h] * torch.outer(key, v[i, h])
                read = memory[h].T @ (q[h] / (q[h] @ q[h] + 1e-6).sqrt()) / m.key_dim**0.5
                o.append(read / (read.square().mean() + 1e-5).sqrt() * m.norm.weight)
            y = torch.cat(o)
            if m.out_gate is not None:
                g = m.out_gate.weight @ u
                y = y * g * torch.sigmoid(g)
            out.append(m.out.weight @ y)
        rows.append(torch.stack(out))
    return torch.stack(rows)
