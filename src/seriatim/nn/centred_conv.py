"""A short convolution that sees as many tokens after a token as before it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.errors import SeriatimError, check_size

__all__ = ["CentredConv", "flipped_reset"]


class CentredConv(nn.Module):
    r"""Depthwise convolution: :math:`y_t = b + \sum_{i<W} w_i\, x_{t-(W-1)/2+i}`, each feature with its own kernel;
    without `bias`, b is 0. Documents do not see one another. W is odd.
    """

    def __init__(self, dim: int, size: int = 7, bias: bool = True):
        super().__init__()
        check_size(conv_size=size)
        if size % 2 == 0:
            raise SeriatimError(f"conv_size is {size}; it must be odd, so that there is a middle")
        self.dim, self.size = dim, size
        bound = size**-0.5  # torch.nn.Conv1d's own, for one input channel
        self.weight = nn.Parameter(torch.empty(dim, size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(dim).uniform_(-bound, bound)) if bias else None

    def forward(self, x: Tensor, reset: Tensor | None = None) -> Tensor:
        """x (B, T, dim) to the same shape. Padding must be zeros."""
        half = self.size // 2
        if reset is None:
            return ops.short_conv(F.pad(x, (0, 0, 0, half)), self.weight, self.bias)[0][:, half:]
        before, _ = ops.short_conv(x, self.weight[:, : half + 1], self.bias, reset=reset)
        later = F.pad(self.weight[:, half + 1 :].flip(1), (0, 1))  # the token itself counts once
        after, _ = ops.short_conv(x.flip(1), later, reset=flipped_reset(reset))
        return before + after.flip(1)


def flipped_reset(reset: Tensor) -> Tensor:
    """Where the documents begin, seen from the end: (B, T) bool for x.flip(1)."""
    return F.pad(reset, (0, 1))[:, 1:].flip(1)
