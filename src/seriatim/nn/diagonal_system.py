"""Diagonal linear systems as a layer of parameters."""

import math

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_size
from seriatim.core.mixer import state_dtype
from seriatim.nn.discretization import RULES, discretize_diagonal, log_steps
from seriatim.nn.hippo import diagonal_start

__all__ = ["DiagonalSystem", "reference"]


class DiagonalSystem(nn.Module):
    r"""G systems :math:`h' = \Lambda h + B u, \; y = 2\, \mathrm{Re}(C h)` of complex numbers in conjugate pairs.

    One of each pair is kept, so that `state_size` N real numbers are N / 2 complex ones; tokens lie a step e^s apart.
    C begins normal, steps log-uniform, B as 1; it is trained where `weighted`, else C has learnt it too.

    Source: Gu et al., 2022, arXiv:2206.11893 (S4D), sections 3 and 4.
    """

    def __init__(
        self,
        systems: int,
        answers: int = 1,
        state_size: int = 64,
        init: str = "lin",
        discretization: str = "zoh",
        step_min: float = 1e-3,
        step_max: float = 0.1,
        weighted: bool = False,
    ):
        super().__init__()
        check_size(systems=systems, answers=answers, state_size=state_size)
        check_one_of("discretization", discretization, RULES)
        eigenvalues = diagonal_start(init, state_size).expand(systems, -1)
        self.discretization = discretization
        self.log_step = nn.Parameter(log_steps(systems, step_min, step_max))
        self.log_real = nn.Parameter((-eigenvalues.real).log().float())
        self.imaginary = nn.Parameter(eigenvalues.imag.float())
        one = torch.tensor([1.0, 0.0]).expand(systems, state_size // 2, 2)
        self.B = nn.Parameter(one.clone()) if weighted else None
        self.C = nn.Parameter(torch.randn(systems, answers, state_size // 2, 2) * math.sqrt(0.5))

    def forward(self, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """A (G, N / 2), B (G, N / 2) and C (G, M, N / 2) of h_t = A h_{t-1} + B u_t, y_t = Re(C h_t), complex.

        `rate` steps lie between two tokens.
        """
        wide = state_dtype(self.C.dtype)
        eigenvalues = torch.complex(-self.log_real.to(wide).exp(), self.imaginary.to(wide))
        step = self.log_step.to(wide).exp() * rate
        B = torch.ones_like(eigenvalues) if self.B is None else torch.view_as_complex(self.B.to(wide))
        A, B = discretize_diagonal(eigenvalues, B, step, self.discretization)
        return A, B, 2 * torch.view_as_complex(self.C.to(wide))


def reference(m: DiagonalSystem, system: int, rate: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """A (N,), B (N,) and C (M, N) of one of the systems, from the equations, both numbers of each pair written out."""
    eigenvalues = torch.complex(-m.log_real[system].exp(), m.imaginary[system])
    C = torch.complex(m.C[system, ..., 0], m.C[system, ..., 1])
    B = torch.ones_like(eigenvalues) if m.B is None else torch.complex(m.B[system, :, 0], m.B[system, :, 1])
    eigenvalues, B, C = (torch.cat([z, z.conj()], -1) for z in (eigenvalues, B, C))
    step = m.log_step[system].exp() * rate
    if m.discretization == "zoh":
        A = torch.exp(step * eigenvalues)
        return A, (A - 1) / eigenvalues * B, C
    return (1 + step / 2 * eigenvalues) / (1 - step / 2 * eigenvalues), step / (1 - step / 2 * eigenvalues) * B, C
