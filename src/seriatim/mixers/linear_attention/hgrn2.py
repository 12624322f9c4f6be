"""HGRN2."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_divisible, check_number
from seriatim.core.mixer import state_dtype
from seriatim.mixers.linear_attention.base import MatrixInputs, MatrixMixer
from seriatim.nn.norms import build_norm
from seriatim.nn.pointwise import silu

__all__ = ["HGRN2"]


class HGRN2(MatrixMixer):
    r"""HGRN2: a gated recurrence whose state is widened by outer products; what is forgotten makes room for what comes.

    .. math:: f_t = \beta + (1 - \beta)\, \sigma(W_f x_t + b_f), \quad i_t = \mathrm{silu}(W_i x_t + b_i), \quad
              q_t = \sigma(W_q x_t + b_q)

    .. math:: S_t = \mathrm{diag}(f_t) S_{t-1} + (1 - f_t)\, i_t^\top, \quad
              y_t = W_o\, \mathrm{norm}(S_t^\top q_t) + b_o

    for each head; the norm is over all of them. The paper raises the lower bound beta with depth, so that upper layers
    keep longer: 0 in the first layer, in layer l of L the sum of l softmax weights that the model learns, which begin
    equal. Here beta is given and stays: `[{"mixer": "hgrn2", "lower_bound": l / L} for l in range(L)]` is where the
    paper begins.

    Args:
        dim: features in and out.
        heads: memories; dim must be a multiple.
        lower_bound: beta, the least that is kept; at least 0 and below 1.
        norm: "layer" or "rms".

    Source: Qin et al., 2024, arXiv:2404.07904, sections 3.1 and 3.2; Qin et al., 2023, arXiv:2311.04823 (lower bound);
        initialisation, gates and norm of its official code.
    """

    def __init__(self, dim: int, heads: int = 4, lower_bound: float = 0.0, norm: str = "layer"):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        check_number(lower_bound=lower_bound)
        if not 0 <= lower_bound < 1:
            raise SeriatimError(f"lower_bound is {lower_bound!r}; it must be a number from 0 to below 1")
        self.dim, self.heads, self.lower_bound = dim, heads, lower_bound
        self.key_dim = self.value_dim = dim // heads
        self.inputs = nn.Linear(dim, 3 * dim)
        self.output_norm = build_norm(norm, dim)
        self.norm = norm
        self.out = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> MatrixInputs:
        q, f, i = self.inputs(x).chunk(3, -1)
        f = f.to(state_dtype(f.dtype))
        k = (1 - self.lower_bound) * torch.sigmoid(-f)  # 1 - forget, exact where that is small
        log_decay = torch.log1p(-k) if self.lower_bound else F.logsigmoid(f)
        q, k, v, log_decay = (z.unflatten(-1, (self.heads, -1)) for z in (torch.sigmoid(q), k, silu(i), log_decay))
        return MatrixInputs(q, k, v, log_decay)

    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(self.output_norm(o.flatten(-2)))


def reference(m: HGRN2, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time."""
    w_q, w_f, w_i = m.inputs.weight.chunk(3)
    b_q, b_f, b_i = m.inputs.bias.chunk(3)
    scale = m.output_norm.get_parameter("weight")
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(m.key_dim, m.value_dim) for _ in range(m.heads)], []
        for u in sequence:
            forget = m.lower_bound + (1 - m.lower_bound) * torch.sigmoid(w_f @ u + b_f)
            i, q = w_i @ u + b_i, torch.sigmoid(w_q @ u + b_q)
            i, read = i * torch.sigmoid(i), []
            for h in range(m.heads):
                j = slice(h * m.key_dim, (h + 1) * m.key_dim)
                memory[h] = torch.diag(forget[j]) @ memory[h] + torch.outer(1 - forget[j], i[j])
                read.append(memory[h].T @ q[j])
            o = torch.cat(read)
            if m.norm == "layer":
                o = (o - o.mean()) / (o.var(correction=0) + 1e-5).sqrt() * scale + m.output_norm.get_parameter("bias")
            else:
                o = o / (o.square().mean() + 1e-5).sqrt() * scale
            out.append(m.out.weight @ o + m.out.bias)
        rows.append(torch.stack(out))
    return torch.stack(rows)
