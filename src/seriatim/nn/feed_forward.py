"""Position-wise feed-forward layers by name."""

import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_positive
from seriatim.nn.pointwise import swiglu

__all__ = ["FEED_FORWARDS", "GatedFeedForward", "PlainFeedForward", "build_feed_forward"]

FEED_FORWARDS = ("swiglu", "gelu", "none")


class GatedFeedForward(nn.Module):
    r"""SwiGLU: :math:`W_o (\mathrm{silu}(W_g x) \odot W_u x)`. Source: Shazeer, 2020, arXiv:2002.05202."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.inner = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        return self.out(swiglu(self.inner(x)))


class PlainFeedForward(nn.Module):
    r"""GELU between two layers: :math:`W_2\, \mathrm{gelu}(W_1 x + b_1) + b_2`. Source: arXiv:1606.08415."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        return self.out(F.gelu(self.up(x)))


def build_feed_forward(name: str, dim: int, expansion: float) -> nn.Module | None:
    """The layer of that name with about `expansion` x dim hidden units; None for "none".

    A gated layer has three matrices where a plain one has two, so its hidden width is two thirds as large: equal
    parameters.
    """
    check_one_of("feed_forward", name, FEED_FORWARDS)
    check_positive(expansion=expansion)
    if name == "none":
        return None
    if name == "gelu":
        return PlainFeedForward(dim, round(expansion * dim))
    return GatedFeedForward(dim, max(8, round(expansion * dim * 2 / 3 / 8) * 8))
