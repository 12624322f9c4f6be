"""LRU."""

import math

import torch
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_number, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.mimo_base import MIMOMixer, MIMOSystem
from seriatim.nn.glu_output import GLUOutput

__all__ = ["LRU"]

EDGE = 1e-7  # how near the ends of (0, 1) a first eigenvalue's share of the ring may lie


class LRU(MIMOMixer):
    r"""Linear recurrent unit: a diagonal complex recurrence that never was in continuous time.

    .. math:: h_t = \lambda \odot h_{t-1} + e^{\gamma} \odot (B x_t), \quad \lambda = e^{-e^{\nu} + i e^{\theta}}, \quad
              y_t = \mathrm{Re}(C h_t) + D \odot x_t, \quad z_t = \mathrm{GLU}(\mathrm{gelu}(y_t))

    Written so, :math:`|\lambda| < 1` whatever is learned. The first eigenvalues are uniform on the ring between radius
    r_min and r_max, of phases up to max_phase, and :math:`e^{\gamma} = \sqrt{1 - |\lambda|^2}`, so that h has the size
    of its input.

    Args:
        dim: features in and out.
        state_size: N, complex state values; None is dim.
        r_min, r_max: 0 <= r_min < r_max <= 1.
        max_phase: above 0.

    Source: Orvieto et al., 2023, arXiv:2303.06349, sections 3.2 to 3.4, lemma 3.2 and appendix A.
    """

    def __init__(
        self,
        dim: int,
        state_size: int | None = None,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
    ):
        super().__init__()
        self.states = dim if state_size is None else state_size
        check_size(dim=dim, state_size=self.states)
        check_positive(max_phase=max_phase)
        check_number(r_min=r_min, r_max=r_max)
        if not 0 <= r_min < r_max <= 1:
            raise SeriatimError(f"r_min is {r_min} and r_max is {r_max}; it must be that 0 <= r_min < r_max <= 1")
        self.dim, self.state_size = dim, state_size
        self.r_min, self.r_max, self.max_phase = r_min, r_max, max_phase
        area, turn = torch.empty(2, self.states, dtype=torch.float64).uniform_(EDGE, 1 - EDGE)
        square = r_min**2 + area * (r_max**2 - r_min**2)
        self.nu = nn.Parameter((-0.5 * square.log()).log().float())
        self.theta = nn.Parameter((max_phase * turn).log().float())
        self.gamma = nn.Parameter((1 - square).sqrt().log().float())
        self.B = nn.Parameter(torch.randn(self.states, dim, 2) / math.sqrt(2 * dim))
        self.C = nn.Parameter(torch.randn(dim, self.states, 2) / math.sqrt(self.states))
        self.D = nn.Parameter(torch.randn(dim))
        self.out = GLUOutput(dim, dim)

    def system(self) -> MIMOSystem:
        wide = state_dtype(self.B.dtype)
        A = torch.polar((-self.nu.to(wide).exp()).exp(), self.theta.to(wide).exp())
        B, C = torch.view_as_complex(self.B.to(wide)), torch.view_as_complex(self.C.to(wide))
        return MIMOSystem(A, self.gamma.to(wide).exp().unsqueeze(1) * B, C)

    def readout(self, y: Tensor) -> Tensor:
        return self.out(y)


def reference(m: LRU, x: Tensor) -> Tensor:
    """The paper's equations, one sequence and token at a time, in complex numbers."""
    eigenvalues = torch.exp(torch.complex(-m.nu.exp(), m.theta.exp()))
    B, C = torch.complex(*m.B.unbind(2)), torch.complex(*m.C.unbind(2))
    rows = []
    for sequence in x:
        h, out = torch.zeros_like(eigenvalues), []
        for token in sequence:
            h = eigenvalues * h + m.gamma.exp() * (B @ token.to(B.dtype))
            y = (C @ h).real + m.D * token
            y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
            a, b = (m.out.linear.weight @ y + m.out.linear.bias).chunk(2)
            out.append(a * torch.sigmoid(b))
        rows.append(torch.stack(out))
    return torch.stack(rows)
