"""The family of nonlinear cells: one input projection for the whole segment, then the cell token by token."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.errors import check_divisible
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.ops.cell_scan import init_cell_state

__all__ = ["CellMixer"]


class CellMixer(Mixer):
    """A cell of `heads` independent blocks, each dim // heads wide: its recurrent matrices are block diagonal.

    A method names its `cell` and how many `gates` it has; the projection, the scan, resets and padding are done here.
    One whose last gate has a bias in its recurrent part as well sets `candidate_bias` (dim,). The output is the hidden
    state.
    """

    cell: ClassVar[str]
    gates: ClassVar[int]
    candidate_bias: nn.Parameter | None

    def __init__(self, dim: int, heads: int = 1):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.input = nn.Linear(dim, self.gates * dim)
        self.recurrent = nn.Parameter(torch.empty(self.gates, heads, self.head_dim, self.head_dim))
        bound = self.head_dim**-0.5  # as torch.nn.RNN, LSTM and GRU
        for parameter in (self.input.weight, self.input.bias, self.recurrent):
            nn.init.uniform_(parameter, -bound, bound)
        self.register_parameter("candidate_bias", None)

    def init_state(self, batch: int) -> State:
        return init_cell_state(self.cell, batch, self.heads, self.head_dim, like=self.recurrent)

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        parts = self.gates, self.heads, self.head_dim
        if self.candidate_bias is None:  # the scan adds the bias: that spares a pass over all inputs
            inputs, bias = F.linear(x, self.input.weight), self.input.bias.view(parts)
        else:
            inputs = self.input(x)
            bias = F.pad(self.candidate_bias.view(1, *parts[1:]), (0, 0, 0, 0, self.gates - 1, 0))
        hidden, state = ops.cell_scan(
            self.cell, inputs.unflatten(-1, parts), self.recurrent, bias, state=state, reset=reset, lengths=lengths
        )
        return hidden.flatten(-2), state
