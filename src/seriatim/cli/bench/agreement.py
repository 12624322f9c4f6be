"""Whether two sides computed the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError

__all__ = ["relative_error"]


def relative_error(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest |a - b| / |b| of any pair of tensors, |.| the Euclidean norm; infinite where one is not finite.

    Raises:
        SeriatimError: they have different numbers of tensors, or different shapes.
    """
    shapes = [[tuple(z.shape) for z in side] for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise SeriatimError(f"our results have shapes {shapes[0]}, the peer's {shapes[1]}")
    return max((_error(_wide(a), _wide(b)) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _wide(z: Tensor) -> Tensor:
    z = z.detach()
    return (torch.view_as_real(z) if z.is_complex() else z).double()


def _error(a: Tensor, b: Tensor) -> float:
    error, size = float((a - b).norm()), float(b.norm())
    if error == 0:
        return 0.0
    found = error / size if size else float("inf")
    return found if found == found else float("inf")
