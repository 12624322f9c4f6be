"""Normalisation layers by name."""

from torch import nn

from seriatim.core.errors import check_one_of

__all__ = ["NORMS", "build_norm"]

NORMS = ("rms", "layer")


def build_norm(name: str, dim: int) -> nn.Module:
    """A norm over the last dimension: "rms" (x / sqrt(mean x^2), arXiv:1910.07467) or "layer" (arXiv:1607.06450)."""
    check_one_of("norm", name, NORMS)
    return nn.RMSNorm(dim, eps=1e-5) if name == "rms" else nn.LayerNorm(dim)
