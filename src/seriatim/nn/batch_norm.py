"""Batch normalisation of sequences, of which padded tokens are no part."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BatchNorm"]


class BatchNorm(nn.Module):
    """Each feature less its mean, over its deviation, times w plus b.

    In training, mean and deviation are those of all real tokens of the batch, so that a token's output depends on the
    others, later ones included; in evaluation, running averages that training left, so that it does not. Of fewer
    than two tokens there is no deviation: they are read as in evaluation.

    Source: Ioffe and Szegedy, 2015, arXiv:1502.03167.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int, momentum: float = 0.1, epsilon: float = 1e-5):
        super().__init__()
        self.dim, self.momentum, self.epsilon = dim, momentum, epsilon
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """x (B, T, dim) to the same; real (B, T) says which tokens are no padding."""
        if not self.training:
            return self._normal(x)
        tokens = x.flatten(0, 1) if real is None else x[real]
        if tokens.size(0) < 2:
            return self._normal(x)
        found = F.batch_norm(
            tokens, self.mean, self.variance, self.weight, self.bias, True, self.momentum, self.epsilon
        )
        return found.view(x.shape) if real is None else torch.zeros_like(x).masked_scatter(real.unsqueeze(2), found)

    def _normal(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.variance + self.epsilon).rsqrt()
        return torch.addcmul(self.bias - self.mean * scale, x, scale)
