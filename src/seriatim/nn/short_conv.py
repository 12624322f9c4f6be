"""A short causal convolution as a layer with a carried tail."""

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.errors import check_size

__all__ = ["ShortConv"]


class ShortConv(nn.Module):
    r"""Depthwise causal convolution: :math:`y_t = b + \sum_{i<W} w_i\, x_{t-W+1+i}`, each feature with its own kernel;
    without `bias`, b is 0.

    Its state is the tail, the last W - 1 inputs (B, W - 1, dim).
    """

    def __init__(self, dim: int, size: int = 4, bias: bool = True):
        super().__init__()
        check_size(conv_size=size)
        self.dim, self.size = dim, size
        bound = size**-0.5  # torch.nn.Conv1d's own, for one input channel
        self.weight = nn.Parameter(torch.empty(dim, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if bias else None

    def forward(
        self, x: Tensor, state: Tensor | None = None, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, dim) to the same shape, and the new tail."""
        return ops.short_conv(x, self.weight, self.bias, state=state, reset=reset, lengths=lengths)
