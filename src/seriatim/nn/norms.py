"""Normalisation layers, the choice between them by name, and keys of length 1."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_divisible, check_one_of, check_positive
from seriatim.core.mixer import state_dtype
from seriatim.kernels.cpu.pointwise import rms_norm
from seriatim.nn.pointwise import SMALL, gated
from seriatim.ops.backend import choose

__all__ = ["NORMS", "GatedRMSNorm", "RMSNorm", "build_norm", "l2_norm"]

NORMS = ("rms", "layer")
EPSILON = 1e-5


class RMSNorm(nn.RMSNorm):
    r"""Root mean square norm, :math:`w \odot x / \sqrt{\mathrm{mean}(x^2) + \epsilon}`. Source: arXiv:1910.07467.

    torch's own, but for activations in half precision beside weights in float32 (autocast), which it computes slowly.
    """

    def __init__(self, dim: int, epsilon: float = EPSILON):
        check_positive(epsilon=epsilon)
        super().__init__(dim, eps=epsilon)
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        if x.numel() >= SMALL and x.dtype == self.weight.dtype:
            return _chosen(x, self.weight, self.epsilon)
        return _rms_norm(x, self.weight.to(x.dtype), self.epsilon)


class GatedRMSNorm(nn.Module):
    r"""Root mean square norm with a gate: :math:`\mathrm{rms}(x \odot \mathrm{silu}(z))`, or with `before_gate`
    :math:`\mathrm{rms}(x) \odot \mathrm{silu}(z)`.

    The features are normalised in `groups` groups of neighbours, each by itself; every feature has its weight.
    Source: Dao and Gu, 2024, arXiv:2405.21060, section 7.
    """

    def __init__(self, dim: int, groups: int = 1, before_gate: bool = False, epsilon: float = EPSILON):
        super().__init__()
        check_divisible(dim=dim, norm_groups=groups)
        check_positive(epsilon=epsilon)
        self.dim, self.groups, self.before_gate, self.epsilon = dim, groups, before_gate, epsilon
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x and gate (..., dim) to (..., dim)."""
        return gated(self._norm(x), gate) if self.before_gate else self._norm(gated(x, gate))

    def _norm(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)
        run = _rms_norm if x.numel() < SMALL else _chosen
        if self.groups == 1:
            return run(x, weight, self.epsilon)
        parts = x.unflatten(-1, (self.groups, -1))
        return run(parts, x.new_ones(parts.size(-1)), self.epsilon).flatten(-2) * weight


def _chosen(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return choose({"reference": _rms_norm, "torch": _rms_norm, "cpu": rms_norm}, x)(x, weight, epsilon)


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, epsilon)


def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    r""":math:`x / \sqrt{\sum x^2 + \epsilon}` over the last dimension, at most 1 long: in float32 at least."""
    x = x.to(state_dtype(x.dtype))
    if x.numel() < SMALL:
        return x * (x.square().sum(-1, keepdim=True) + epsilon).rsqrt()
    dim = x.size(-1)
    return _chosen(x, x.new_full((dim,), dim**-0.5), epsilon / dim)


def build_norm(name: str, dim: int) -> nn.Module:
    """A norm over the last dimension: "rms" or "layer" (arXiv:1607.06450)."""
    check_one_of("norm", name, NORMS)
    return RMSNorm(dim) if name == "rms" else nn.LayerNorm(dim)
