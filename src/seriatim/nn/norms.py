"""Normalisation layers, the choice between them by name, and keys of length 1."""

import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_one_of
from seriatim.core.mixer import state_dtype
from seriatim.kernels.cpu.pointwise import rms_norm
from seriatim.nn.pointwise import SMALL
from seriatim.ops.backend import choose

__all__ = ["NORMS", "RMSNorm", "build_norm", "l2_norm"]

NORMS = ("rms", "layer")
EPSILON = 1e-5


class RMSNorm(nn.RMSNorm):
    r"""Root mean square norm, :math:`w \odot x / \sqrt{\mathrm{mean}(x^2) + \epsilon}`. Source: arXiv:1910.07467.

    torch's own, but for activations in half precision beside weights in float32 (autocast), which it computes slowly.
    """

    def __init__(self, dim: int):
        super().__init__(dim, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        if x.numel() >= SMALL and x.dtype == self.weight.dtype:
            return choose({"reference": _rms_norm, "torch": _rms_norm, "cpu": rms_norm}, x)(x, self.weight, EPSILON)
        return _rms_norm(x, self.weight.to(x.dtype), EPSILON)


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, epsilon)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    r""":math:`x / \sqrt{\sum x^2 + \epsilon}` over the last dimension, at most 1 long: in float32 at least."""
    x = x.to(state_dtype(x.dtype))
    if x.numel() < SMALL:
        return x * (x.square().sum(-1, keepdim=True) + epsilon).rsqrt()
    dim = x.size(-1)
    run = choose({"reference": _rms_norm, "torch": _rms_norm, "cpu": rms_norm}, x)
    return run(x, x.new_full((dim,), dim**-0.5), epsilon / dim)


def build_norm(name: str, dim: int) -> nn.Module:
    """A norm over the last dimension: "rms" or "layer" (arXiv:1607.06450)."""
    check_one_of("norm", name, NORMS)
    return RMSNorm(dim) if name == "rms" else nn.LayerNorm(dim)
