"""Long short-term memory."""

import torch
from torch import Tensor, nn

from seriatim.mixers.recurrent.base import CellMixer

__all__ = ["LSTM"]


class LSTM(CellMixer):
    r"""Long short-term memory with a forget gate: a cell that is written, kept and shown by gates.

    .. math:: i, f, o = \sigma(W_{i,f,o} x_t + b_{i,f,o} + U_{i,f,o} h_{t-1}), \quad g = \tanh(W_g x_t + b_g + U_g
    h_{t-1})

    .. math:: c_t = f \odot c_{t-1} + i \odot g, \quad h_t = o \odot \tanh(c_t)

    The forget gate's bias begins at 1, so that a new cell remembers (Gers et al., 2000; Jozefowicz et al., 2015).

    Args:
        dim: features in and out, and the size of h and c.
        heads: independent blocks of the recurrent matrices; dim must be a multiple.

    Source: Hochreiter and Schmidhuber, 1997; block-diagonal U: FlashRNN, arXiv:2412.07752.
    """

    cell = "lstm"
    gates = 4

    def __init__(self, dim: int, heads: int = 1):
        super().__init__(dim, heads)
        with torch.no_grad():
            nn.init.ones_(self.input.bias[dim : 2 * dim])


def reference(m: LSTM, x: Tensor) -> Tensor:
    """The equations gate by gate, one sequence, token and head at a time."""
    rows = []
    for sequence in x:
        h = c = x.new_zeros(m.heads, m.head_dim)
        out = []
        for u in sequence:
            drive = (m.input.weight @ u + m.input.bias).view(4, m.heads, m.head_dim)
            next_h, next_c = [], []
            for j in range(m.heads):
                i, f, g, o = (drive[gate, j] + m.recurrent[gate, j] @ h[j] for gate in range(4))
                next_c.append(torch.sigmoid(f) * c[j] + torch.sigmoid(i) * torch.tanh(g))
                next_h.append(torch.sigmoid(o) * torch.tanh(next_c[j]))
            h, c = torch.stack(next_h), torch.stack(next_c)
            out.append(h.flatten())
        rows.append(torch.stack(out))
    return torch.stack(rows)
