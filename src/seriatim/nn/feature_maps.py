"""Feature maps of linear attention: the product of two maps stands for a kernel of query and key."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_one_of, check_size
from seriatim.core.mixer import state_dtype

__all__ = ["FEATURE_MAPS", "POSITIVE", "FeatureMap", "TaylorFeatures", "build_feature_map"]

_ELEMENTWISE = {
    "elu": lambda x: F.relu(x) + x.clamp(max=0).exp(),
    "relu": F.relu,
    "squared_relu": lambda x: F.relu(x).square(),
    "identity": lambda x: x,
}
FEATURE_MAPS = (*_ELEMENTWISE, "taylor", "performer")
POSITIVE = tuple(name for name in FEATURE_MAPS if name != "identity")  # products are never below 0: they are weights


class FeatureMap(nn.Module):
    """(..., dim) to (..., features)."""

    def __init__(self, dim: int, features: int):
        super().__init__()
        self.dim, self.features = dim, features


class ElementwiseFeatures(FeatureMap):
    r"""A function of every feature alone.

    "elu" is :math:`\mathrm{elu}(x) + 1` (arXiv:2006.16236, equation 7), "relu" :math:`\max(x, 0)`, "squared_relu" its
    square, "identity" x itself.
    """

    def __init__(self, name: str, dim: int):
        super().__init__(dim, dim)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., features)."""
        return _ELEMENTWISE[self.name](x)


class TaylorFeatures(FeatureMap):
    r"""The exponential to second order: :math:`\phi(q) \cdot \phi(k) = 1 + s + s^2 / 2, \; s = q \cdot k / \sqrt{D}`.

    The features are 1, :math:`x_i / D^{1/4}`, :math:`x_i^2 / \sqrt{2D}` and :math:`x_i x_j / \sqrt{D}` for i < j: those
    of the paper, :math:`x \otimes x / \sqrt{2D}`, with the two equal ones of a pair put together. Never below 1 / 2.

    Source: Arora et al., 2024, arXiv:2402.18668, section 4.1; Zhang et al., 2024, arXiv:2402.04347.
    """

    def __init__(self, dim: int):
        super().__init__(dim, 1 + dim + dim * (dim + 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., features), in float32 at least."""
        x = x.to(state_dtype(x.dtype)) * self.dim**-0.25
        round_trip = torch.cat([x, x], -1)
        # Every pair once: x with itself turned by 0, 1, ... dim / 2 places, of the last turn, if dim is even, one half.
        turns = [x * round_trip[..., turn : turn + self.dim] for turn in range(1, (self.dim + 1) // 2)]
        if self.dim % 2 == 0:
            turns.append(x[..., : self.dim // 2] * x[..., self.dim // 2 :])
        return torch.cat([torch.ones_like(x[..., :1]), x, x.square() * 0.5**0.5, *turns], -1)


class PerformerFeatures(FeatureMap):
    r"""Positive random features, whose product estimates the softmax kernel :math:`e^{q \cdot k / \sqrt{D}}`.

    .. math:: \phi(x) = \frac{1}{\sqrt{m}} \exp(w_i \cdot x' - |x'|^2 / 2)_{i \le m}, \quad x' = x / D^{1/4}

    The w are normal, and orthogonal in blocks of D (FAVOR+). They are drawn once, from `seed`, and kept as a buffer:
    the paper also draws them anew from time to time in training. Vectors much longer than the w underflow to 0.

    Source: Choromanski et al., 2021, arXiv:2009.14794, lemma 1 and section 2.4.
    """

    def __init__(self, dim: int, features: int | None, seed: int):
        super().__init__(dim, features or math.ceil(dim * math.log(max(dim, 2))))
        self.random: Tensor
        self.register_buffer("random", _orthogonal(self.features, dim, seed))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., features), in float32 at least."""
        wide = state_dtype(x.dtype)
        x = x.to(wide) * self.dim**-0.25
        with torch.autocast(x.device.type, enabled=False):
            projected = x @ self.random.to(wide).T
        return (projected - x.square().sum(-1, keepdim=True) / 2).exp() * self.features**-0.5


def build_feature_map(name: str, dim: int, random_features: int | None = None, seed: int = 0) -> FeatureMap:
    """The map of that name from `dim` to `.features` features.

    Args:
        name: one of FEATURE_MAPS.
        dim: features of a query or key.
        random_features: m of "performer"; None is dim log dim, rounded up.
        seed: of the random features.
    """
    check_one_of("feature_map", name, FEATURE_MAPS)
    check_size(dim=dim)
    if random_features is not None:
        check_size(random_features=random_features)
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise SeriatimError(f"seed is {seed!r}; it must be a whole number, 0 or more")
    if name == "taylor":
        return TaylorFeatures(dim)
    if name == "performer":
        return PerformerFeatures(dim, random_features, seed)
    return ElementwiseFeatures(name, dim)


def _orthogonal(rows: int, dim: int, seed: int) -> Tensor:
    """(rows, dim): normal vectors, orthogonal to each other in every block of `dim`."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-rows // dim)
    Q, R = torch.linalg.qr(torch.randn(blocks, dim, dim, generator=generator, dtype=torch.float64))
    directions = (
        Q * R.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    ).mT  # without the signs not uniform: estimates are off
    lengths = torch.randn(rows, dim, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return (directions.flatten(0, 1)[:rows] * lengths).float()
