r"""Weights to the nearest of a few multiples of a scale.

.. math:: q = \mathrm{clamp}(\mathrm{round}(w / s)), \qquad s = \max |w| / 127 \;\text{a row}, \qquad
          s = \max |w| / 7.5 \;\text{a group}

for 8 and for 4 bits: q runs from -127 to 127 and from -8 to 7.

Given the second moments H of what a row is multiplied by, its columns are rounded one after another, and what rounding
one changes is made up for by those not yet rounded:

.. math:: e = (w_i - s q_i) / U_{ii}, \quad w_j \leftarrow w_j - e U_{ij}, \quad H^{-1} = U^\top U

Source: the scales, Chiang et al., 2025, arXiv:2503.22879, section 4 and its official code; columns one after another,
Frantar et al., 2023, arXiv:2210.17323, section 3.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.ops.quantized_linear import PAIRED, pack_nibbles

__all__ = ["Rounded", "group_of", "round_weight"]

DAMPING = 0.01  # of the mean second moment, added to every one
SMALLEST = 1e-8  # a scale


class Rounded(NamedTuple):
    """As :mod:`seriatim.ops.quantized_linear` takes them."""

    weight: Tensor  # int8, pairs for 4 bits
    scale: Tensor  # (N,) float32, or (N, groups) bfloat16


def group_of(size: int, largest: int) -> int:
    """How many of a row's `size` weights share a scale: `largest`, or the whole row, filled up to pairs."""
    return min(largest, -(-size // PAIRED) * PAIRED)


def round_weight(weight: Tensor, bits: int, group: int, moments: Tensor | None = None) -> Rounded:
    """Rounds a matrix.

    Args:
        weight: (N, K).
        bits: 8, or 4 with a scale for each `group` neighbours of a row.
        group: the same.
        moments: (K, K), the mean of x x^T over inputs x, or None to round every weight by itself.
    """
    weight = weight.detach().double()
    if bits == 8:
        scale = (weight.abs().amax(1) / 127).clamp(min=SMALLEST).float()
        q = _columns(weight, scale[:, None], weight.size(1), (-127, 127), moments)
        return Rounded(q.to(torch.int8), scale)
    parts = weight.split(group, 1)
    scale = torch.stack([(part.abs().amax(1) / 7.5).clamp(min=SMALLEST) for part in parts], 1).bfloat16()
    return Rounded(pack_nibbles(_columns(weight, scale, group, (-8, 7), moments)), scale)


def _columns(weight: Tensor, scale: Tensor, group: int, limits: tuple[int, int], moments: Tensor | None) -> Tensor:
    """The whole numbers q, (N, K)."""
    wide = scale.double().repeat_interleave(group, 1)[:, : weight.size(1)]
    if moments is None:
        return (weight / wide).round().clamp(*limits)
    factor, left, found = _factor(moments.double()), weight.clone(), torch.empty_like(weight)
    for i in range(weight.size(1)):
        found[:, i] = (left[:, i] / wide[:, i]).round().clamp(*limits)
        error = (left[:, i] - wide[:, i] * found[:, i]) / factor[i, i]
        left[:, i:] -= error[:, None] * factor[i, i:]
    return found


def _factor(moments: Tensor) -> Tensor:
    """U, upper triangular, of the inverse of the damped moments."""
    damping = DAMPING * moments.diagonal().mean() + torch.finfo(torch.float32).tiny
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments + damping * torch.eye(len(moments)).double()))
    return torch.linalg.cholesky(inverse, upper=True)
