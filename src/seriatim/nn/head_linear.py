"""Products of every head's features with a matrix of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["HeadLinear"]


class HeadLinear(nn.Linear):
    r"""As torch's own, but each head has its matrix: :math:`y_h = W_h x_h + b_h`. One head's weights are torch's own.

    Args:
        heads: how many.
        dim, out: features of a head, in and out.
        bias: whether there is b.
    """

    def __init__(self, heads: int, dim: int, out: int, bias: bool = False):
        super().__init__(dim, heads * out, bias=bias)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        """(..., heads * dim) to (..., heads * out)."""
        if self.heads == 1:
            return F.linear(x, self.weight, self.bias)
        parts, weight = x.unflatten(-1, (self.heads, -1)), self.weight.unflatten(0, (self.heads, -1))
        y = torch.einsum("...hi,hoi->...ho", parts, weight).flatten(-2)
        return y if self.bias is None else y + self.bias
