"""Numbers to begin with that lie near zero."""

import torch
from torch import Tensor

__all__ = ["truncated_normal"]

SHRINKS = 0.87962566103423978  # the deviation of a standard normal number that is cut off at -2 and 2


def truncated_normal(*shape: int, deviation: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers cut off at two deviations, then scaled to the deviation that is asked for."""
    scale = deviation / SHRINKS
    return torch.nn.init.trunc_normal_(torch.empty(shape, dtype=dtype), std=scale, a=-2 * scale, b=2 * scale)
