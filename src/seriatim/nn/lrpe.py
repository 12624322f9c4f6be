"""Linearised relative positions of one or several dimensions (LRPE, MD-LRPE).

Dimensions: B batch, T time, A axes, H heads, K key dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_size

__all__ = ["check_shape", "coordinates", "lrpe", "lrpe_angles"]


def check_shape(shape: Sequence[int]) -> None:
    """Raises unless `shape` is the sizes of a grid's axes but the first."""
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise SeriatimError(f"shape is {shape!r}; it must be a list of sizes, such as [width]")
    check_size(**{f"shape[{axis}]": size for axis, size in enumerate(shape)})


def coordinates(positions: Tensor, shape: Sequence[int]) -> Tensor:
    """Where tokens read row by row stand in a grid: (B, T) int to (B, T, A) int, A = 1 + len(shape).

    Args:
        positions: each token's index in its document.
        shape: the sizes of all axes but the first, which is as long as it needs to be: () for a sequence, (width,) for
            an image, (height, width) for a film.
    """
    axes = []
    for size in reversed(shape):
        axes.append(positions % size)
        positions = positions // size
    return torch.stack([positions, *reversed(axes)], -1)


def lrpe_angles(places: Tensor, heads: int, features: int, base: float, dtype: torch.dtype) -> Tensor:
    r"""The angles :math:`c_a\, \theta_{h,i}` of every key feature, (B, T, H, K).

    .. math:: \theta_{h,i} = base^{-2 (hK + i) / (HK)}

    The first K / A features of a head turn with the first coordinate, the next with the second, and so on; each axis
    has the same frequencies, those of i from 0 to K / A - 1.

    Args:
        places: (B, T, A) int, each token's coordinates.
        heads: H.
        features: K, a multiple of A.
        base: of the wavelengths.
        dtype: in which they are computed.

    Source: Qin et al., 2024, arXiv:2405.21022, section 4 (MD-LRPE); one axis: arXiv:2307.09270.
    """
    each = features // places.size(-1)
    index = torch.arange(heads * features, device=places.device, dtype=dtype).view(heads, features)[:, :each]
    frequency = base ** (-2 * index / (heads * features))
    return (places.to(dtype)[:, :, None, :, None] * frequency[:, None]).flatten(-2)


def lrpe(x: Tensor, angles: Tensor) -> Tensor:
    r"""Queries or keys (B, T, H, K) with their positions, (B, T, H, 2K).

    .. math:: x_i \mapsto (x_i \cos \phi_i,\; x_i \sin \phi_i), \quad
              \hat q \cdot \hat k = \sum_i q_i k_i \cos(\phi^q_i - \phi^k_i)

    The real part of a unitary transform. Each feature keeps to itself, so that a key feature's own decay fades it.
    """
    wide = x.to(angles.dtype)
    return torch.cat([wide * angles.cos(), wide * angles.sin()], -1).to(x.dtype)
