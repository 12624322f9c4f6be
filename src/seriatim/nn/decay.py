"""Decays that are discretised: a rate of their own and a step size that depends on the token."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.mixer import state_dtype

__all__ = ["HeadDecay", "step_size_bias"]


class HeadDecay(nn.Module):
    r"""One decay a head, as Mamba-2 parametrises it: :math:`\log \alpha_t = -e^{A} \Delta_t`, with a step size
    :math:`\Delta_t = \mathrm{softplus}(W x_t + b)`.

    :math:`e^A` begins uniform between `rates`, the step sizes softplus(b) log-uniform between 0.001 and 0.1. Where
    there are limits, step sizes are cut to them. Steps and logarithms are in float32 at least.

    Args:
        dim: features of x.
        heads: decays.
        directions: how often W is there; b and A are one for all. Steps then are (..., directions, heads).
        rates: where e^A begins.
        step_min, step_max: the limits.

    Source: Dao and Gu, 2024, arXiv:2405.21060, section 7.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        directions: int = 1,
        rates: tuple[float, float] = (1e-4, 16.0),
        step_min: float = 0.0,
        step_max: float | None = None,
    ):
        super().__init__()
        self.dim, self.heads, self.directions = dim, heads, directions
        self.step_min, self.step_max = step_min, step_max
        self.step = nn.Linear(dim, directions * heads, bias=False)
        self.step_bias = nn.Parameter(step_size_bias(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(*rates).log())

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the logarithms of the decays (..., heads)."""
        return self.log_decay(self.steps(x))

    def steps(self, x: Tensor) -> Tensor:
        """(..., dim) to the step sizes (..., heads)."""
        step = self.step(x)
        if self.directions > 1:
            step = step.unflatten(-1, (self.directions, self.heads))
        wide = state_dtype(step.dtype)
        step = F.softplus(step.to(wide) + self.step_bias.to(wide))
        limited = self.step_min > 0 or self.step_max is not None
        return step.clamp(self.step_min, self.step_max) if limited else step

    def log_decay(self, step: Tensor) -> Tensor:
        """The logarithms of the decays over steps (..., heads)."""
        return -self.A_log.to(step.dtype).exp() * step


def step_size_bias(count: int, smallest: float = 1e-3, largest: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Biases whose softplus is log-uniform between `smallest` and `largest`. Source: arXiv:2312.00752, section 3.6."""
    step = torch.empty(count).uniform_(math.log(smallest), math.log(largest)).exp().clamp(min=floor)
    return step + torch.log(-torch.expm1(-step))
