"""Decays that are discretised: a rate of their own and a step size that depends on the token."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.mixer import state_dtype

__all__ = ["HeadDecay", "step_size_bias"]


class HeadDecay(nn.Module):
    r"""One decay a head, as Mamba-2 parametrises it: :math:`\log \alpha_t = -e^{A} \,\mathrm{softplus}(W x_t + b)`.

    :math:`e^A` begins uniform between 0 and 16, the step sizes softplus(b) log-uniform between 0.001 and 0.1. The
    logarithms are in float32 at least.

    Source: Dao and Gu, 2024, arXiv:2405.21060, section 7.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.dim, self.heads = dim, heads
        self.step = nn.Linear(dim, heads, bias=False)
        self.step_bias = nn.Parameter(step_size_bias(heads))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1e-4, 16).log())

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to the logarithms of the decays (..., heads)."""
        step = self.step(x)
        wide = state_dtype(step.dtype)
        return -self.A_log.to(wide).exp() * F.softplus(step.to(wide) + self.step_bias.to(wide))


def step_size_bias(count: int, smallest: float = 1e-3, largest: float = 0.1, floor: float = 1e-4) -> Tensor:
    """Biases whose softplus is log-uniform between `smallest` and `largest`. Source: arXiv:2312.00752, section 3.6."""
    step = torch.empty(count).uniform_(math.log(smallest), math.log(largest)).exp().clamp(min=floor)
    return step + torch.log(-torch.expm1(-step))
