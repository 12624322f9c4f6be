"""What follows a linear system: a nonlinearity, and features mixed with gates."""

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["GLUOutput"]


class GLUOutput(nn.Module):
    r""":math:`a \odot \sigma(b)` where :math:`(a, b) = W\, \mathrm{gelu}(y) + c`. Source: code of arXiv:2206.11893."""

    def __init__(self, inner: int, dim: int):
        super().__init__()
        self.inner, self.dim = inner, dim
        self.linear = nn.Linear(inner, 2 * dim)

    def forward(self, y: Tensor) -> Tensor:
        """y (..., inner) to (..., dim)."""
        a, b = self.linear(F.gelu(y)).chunk(2, -1)
        return a * b.sigmoid()
