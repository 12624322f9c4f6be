"""Gated recurrent unit."""

import torch
from torch import Tensor, nn

from seriatim.mixers.recurrent.base import CellMixer

__all__ = ["GRU"]


class GRU(CellMixer):
    r"""Gated recurrent unit: a reset gate r hides the past from the candidate n, an update gate z mixes it in.

    .. math:: r, z = \sigma(W_{r,z} x_t + b_{r,z} + U_{r,z} h_{t-1}), \quad
              n = \tanh(W_n x_t + b_n + r \odot (U_n h_{t-1} + b'_n))

    .. math:: h_t = (1 - z) \odot n + z \odot h_{t-1}

    The reset gate acts after the recurrent product, as in torch.nn.GRU and cuDNN, so that one product serves all
    gates; in the paper it acts before it.

    Args:
        dim: features in and out, and the size of h.
        heads: independent blocks of the recurrent matrices; dim must be a multiple.

    Source: Cho et al., 2014, arXiv:1406.1078; block-diagonal U: FlashRNN, arXiv:2412.07752.
    """

    cell = "gru"
    gates = 3
    candidate_bias: nn.Parameter

    def __init__(self, dim: int, heads: int = 1):
        super().__init__(dim, heads)
        bound = self.head_dim**-0.5
        self.candidate_bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound))


def reference(m: GRU, x: Tensor) -> Tensor:
    """The equations gate by gate, one sequence, token and head at a time."""
    rows, candidate_bias = [], m.candidate_bias.view(m.heads, m.head_dim)
    for sequence in x:
        h, out = x.new_zeros(m.heads, m.head_dim), []
        for u in sequence:
            drive = (m.input.weight @ u + m.input.bias).view(3, m.heads, m.head_dim)
            new = []
            for j in range(m.heads):
                r = torch.sigmoid(drive[0, j] + m.recurrent[0, j] @ h[j])
                z = torch.sigmoid(drive[1, j] + m.recurrent[1, j] @ h[j])
                n = torch.tanh(drive[2, j] + r * (m.recurrent[2, j] @ h[j] + candidate_bias[j]))
                new.append((1 - z) * n + z * h[j])
            h = torch.stack(new)
            out.append(h.flatten())
        rows.append(torch.stack(out))
    return torch.stack(rows)
