r"""Logarithms of sums of exponentials over documents, of any size, without overflow.

Dimensions: B batch, T time, F any number of feature dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim import ops
from seriatim.core import ragged

__all__ = ["document_log_sum", "running_log_sum"]

NOTHING = float("-inf")


def running_log_sum(x: Tensor, before: Tensor, reset: Tensor | None) -> Tensor:
    r"""The log of the sum of the exponentials so far, :math:`z_t = \log(e^{z_{t-1}} + e^{x_t})`.

    Args:
        x: (B, T, *F); -inf is a token that is not there.
        before: (B, *F), the sum that was carried; -inf is none.
        reset: (B, T) bool, a new sum begins at this token.

    Returns:
        z (B, T, *F), -inf where nothing was there yet.
    """
    with torch.no_grad():  # the maximum is a gauge, on which the sum does not depend
        highest = _running_max(x, before, reset)
        maximum = _finite(highest)
    previous = torch.cat([before.unsqueeze(1), highest], 1)[:, :-1]
    if reset is not None:
        previous = ragged.mask(previous, ~reset, NOTHING)
    one = torch.ones_like(before)
    total, _ = ops.diagonal_scan((previous - maximum).exp(), (x - maximum).exp(), state=one, reset=reset)
    return _log(total, maximum)


def document_log_sum(x: Tensor, reset: Tensor | None) -> Tensor:
    """The same over the whole of each token's document, what comes later included: (B, T, *F)."""
    if x.size(1) == 0:
        return x
    if reset is None:
        maximum = _finite(x.detach().amax(1, keepdim=True))
        return _log((x - maximum).exp().sum(1, keepdim=True), maximum).expand_as(x)
    index = ragged.segments(reset).view(*reset.shape, *[1] * (x.dim() - 2)).expand(x.shape)
    empty = torch.full_like(torch.cat([x[:, :1], x], 1), NOTHING)  # one for each document there may be
    maximum = _finite(empty.scatter_reduce(1, index, x.detach(), "amax"))
    total = torch.zeros_like(maximum).scatter_add(1, index, (x - maximum.gather(1, index)).exp())
    return _log(total, maximum).gather(1, index)


def _finite(maximum: Tensor) -> Tensor:
    return maximum.masked_fill(maximum == NOTHING, 0.0)


def _log(total: Tensor, maximum: Tensor) -> Tensor:
    empty = total == 0
    return (maximum + total.masked_fill(empty, 1.0).log()).masked_fill(empty, NOTHING)


def _running_max(x: Tensor, before: Tensor, reset: Tensor | None) -> Tensor:
    """The maximum so far in each document, by joining spans of twice the length until all are joined."""
    x = torch.cat([before.unsqueeze(1), x], 1)
    if reset is None:
        return torch.maximum(x[:, :1], x[:, 1:]) if x.size(1) == 2 else x.cummax(1).values[:, 1:]
    begins = F.pad(reset, (1, 0))
    age = ragged.positions(begins, torch.zeros_like(begins[:, 0], dtype=torch.long), begins.size(1))
    age = age.view(*age.shape, *[1] * (x.dim() - 2))
    span = 1
    while span <= reset.size(1):
        earlier = torch.cat([x[:, :span], x[:, :-span]], 1).masked_fill(age < span, NOTHING)
        x = torch.maximum(x, earlier)
        span *= 2
    return x[:, 1:]
