"""The simple recurrent network."""

import torch
from torch import Tensor

from seriatim.mixers.recurrent.base import CellMixer

__all__ = ["Elman"]


class Elman(CellMixer):
    r"""Simple recurrent network: the hidden state is fed back through a matrix and a tanh.

    .. math:: h_t = \tanh(W x_t + b + U h_{t-1})

    Args:
        dim: features in and out, and the size of the hidden state.
        heads: independent blocks of the recurrent matrix U; dim must be a multiple.

    Source: Elman, 1990, "Finding structure in time"; block-diagonal U: FlashRNN, arXiv:2412.07752.
    """

    cell = "elman"
    gates = 1

    def __init__(self, dim: int, heads: int = 1):
        super().__init__(dim, heads)


def reference(m: Elman, x: Tensor) -> Tensor:
    """The equation, one sequence, token and head at a time."""
    rows = []
    for sequence in x:
        h, out = x.new_zeros(m.heads, m.head_dim), []
        for u in sequence:
            drive = (m.input.weight @ u + m.input.bias).view(m.heads, m.head_dim)
            h = torch.stack([torch.tanh(drive[j] + m.recurrent[0, j] @ h[j]) for j in range(m.heads)])
            out.append(h.flatten())
        rows.append(torch.stack(out))
    return torch.stack(rows)
