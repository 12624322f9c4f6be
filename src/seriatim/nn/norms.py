"""Normalisation layers, and the choice between them by name."""

import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_one_of

__all__ = ["NORMS", "RMSNorm", "build_norm"]

NORMS = ("rms", "layer")


class RMSNorm(nn.RMSNorm):
    r"""Root mean square norm, :math:`w \odot x / \sqrt{\mathrm{mean}(x^2) + \epsilon}`. Source: arXiv:1910.07467.

    torch's own, but for activations in half precision beside weights in float32 (autocast), which it computes slowly.
    """

    def __init__(self, dim: int):
        super().__init__(dim, eps=1e-5)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def build_norm(name: str, dim: int) -> nn.Module:
    """A norm over the last dimension: "rms" or "layer" (arXiv:1607.06450)."""
    check_one_of("norm", name, NORMS)
    return RMSNorm(dim) if name == "rms" else nn.LayerNorm(dim)
