"""A causal convolution that mixes features, with a carried tail."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.errors import check_size
from seriatim.ops.short_conv import last_inputs

__all__ = ["CausalConv"]


class CausalConv(nn.Module):
    r"""A convolution over the last W tokens, all features to all: :math:`y_t = \sum_{i<W} W_i\, x_{t-W+1+i}`.

    Its state is the tail, the last W - 1 inputs (B, W - 1, dim); taps that reach across a reset are 0. Begins as
    torch.nn.Conv1d.
    """

    def __init__(self, dim: int, out: int, size: int = 3):
        super().__init__()
        check_size(conv_size=size)
        self.dim, self.size = dim, size
        bound = (dim * size) ** -0.5
        self.weight = nn.Parameter(torch.empty(out, dim, size).uniform_(-bound, bound))

    def forward(
        self, x: Tensor, state: Tensor, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, dim) to (B, T, out), and the new tail. What stands in the padding has no effect on real tokens."""
        time = x.size(1)
        inputs = torch.cat([state.to(x.dtype), x], 1)
        document = None if reset is None else F.pad(ragged.segments(reset), (self.size - 1, 0))
        windows = [inputs[:, tap : tap + time] for tap in range(self.size)]
        if document is not None:
            now = document[:, self.size - 1 :]
            windows = [ragged.mask(z, document[:, tap : tap + time] == now) for tap, z in enumerate(windows)]
        y = F.linear(torch.cat(windows, 2), self.weight.movedim(2, 1).flatten(1))
        return y, last_inputs(inputs, document, lengths, self.size).to(state.dtype)
