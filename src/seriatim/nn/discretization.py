r"""From continuous time, x' = A x + B u, to tokens that lie a step Delta apart, h_t = A' h_{t-1} + B' u_t.

"zoh" (zero-order hold: the input is constant for a step):
:math:`A' = e^{\Delta A}, \; B' = A^{-1} (e^{\Delta A} - I) B`.

"bilinear" (trapezoids):
:math:`A' = (I - \Delta A / 2)^{-1} (I + \Delta A / 2), \; B' = (I - \Delta A / 2)^{-1} \Delta B`.

Source: Gu et al., 2021, arXiv:2110.13985, section 2; Gu et al., 2022, arXiv:2206.11893, section 3.1.
"""

import math

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_one_of, check_positive

__all__ = ["RULES", "check_steps", "discretize", "discretize_diagonal", "log_steps"]

RULES = ("zoh", "bilinear")


def discretize_diagonal(A: Tensor, B: Tensor, step: Tensor, rule: str = "zoh") -> tuple[Tensor, Tensor]:
    """A' and B' of a diagonal A (..., N), real or complex, B (..., N) and steps (...)."""
    check_one_of("discretization", rule, RULES)
    scaled = A * step.unsqueeze(-1)
    if rule == "zoh":
        growth = torch.expm1(scaled)
        return growth + 1, growth / A * B
    inverse = 1 / (1 - scaled / 2)
    return (1 + scaled / 2) * inverse, step.unsqueeze(-1) * inverse * B


def discretize(A: Tensor, B: Tensor, step: Tensor, rule: str = "bilinear") -> tuple[Tensor, Tensor]:
    """A' and B' of a matrix A (..., N, N), B (..., N) and steps (...)."""
    check_one_of("discretization", rule, RULES)
    scaled, B = A * step[..., None, None], (B * step.unsqueeze(-1)).unsqueeze(-1)
    if rule == "zoh":  # the exponential of both at once: A need not be invertible
        both = torch.cat([scaled.expand(*B.shape[:-2], *A.shape[-2:]), B], -1)
        both = torch.cat([both, torch.zeros_like(both[..., :1, :])], -2).matrix_exp()
        return both[..., :-1, :-1], both[..., :-1, -1]
    one = torch.eye(A.size(-1), dtype=A.dtype, device=A.device)
    found = torch.linalg.solve(one - scaled / 2, torch.cat([one + scaled / 2, B], -1))
    return found[..., :-1], found[..., -1]


def check_steps(smallest: float, largest: float) -> None:
    """Raises unless both are finite and above 0, the smaller first."""
    check_positive(step_min=smallest, step_max=largest)
    if smallest > largest:
        raise SeriatimError(f"step_min is {smallest} and step_max is {largest}; step_min must not be the larger")


def log_steps(count: int, smallest: float, largest: float) -> Tensor:
    """Logarithms of steps that are log-uniform between two bounds."""
    check_steps(smallest, largest)
    return torch.empty(count).uniform_(math.log(smallest), math.log(largest))
