"""S4D."""

import math

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.invariant_base import InvariantMixer, System
from seriatim.nn.discretization import RULES, discretize_diagonal, log_steps
from seriatim.nn.glu_output import GLUOutput
from seriatim.nn.hippo import diagonal_start

__all__ = ["S4D"]


class S4D(InvariantMixer):
    r"""S4D: a diagonal state space for each feature, of complex numbers that come in conjugate pairs.

    .. math:: h' = \Lambda h + 1 u, \quad y = 2\,\mathrm{Re}(C h) + D u, \quad \Lambda = -e^{a} + i\, b, \quad
              z_t = \mathrm{GLU}(\mathrm{gelu}(y_t))

    in tokens that lie a step e^s apart. One of each pair is kept, N / 2 numbers a feature. `init` chooses the first
    eigenvalues: "legs" those of HiPPO's normal part, "lin" -1/2 + i pi n, "inv" the inverse law. C and D begin normal,
    steps log-uniform.

    Args:
        dim: features in and out.
        state_size: N, real state values a feature; even.
        init: "legs", "lin" or "inv".
        discretization: "zoh" or "bilinear".
        step_min, step_max: bounds of the first steps.
        rate: steps between two tokens, 1 as trained; 2 reads data sampled half as often.

    Source: Gu et al., 2022, arXiv:2206.11893, sections 3 and 4; the rest of the layer is its official code's.
    """

    def __init__(
        self,
        dim: int,
        state_size: int = 64,
        init: str = "lin",
        discretization: str = "zoh",
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size)
        check_one_of("discretization", discretization, RULES)
        check_positive(rate=rate)
        eigenvalues = diagonal_start(init, state_size).expand(dim, -1)
        self.dim, self.state_size, self.init, self.discretization = dim, state_size, init, discretization
        self.step_min, self.step_max, self.rate = step_min, step_max, rate
        self.state_shape = (dim, state_size // 2, 2)
        self.log_step = nn.Parameter(log_steps(dim, step_min, step_max))
        self.log_real = nn.Parameter((-eigenvalues.real).log().float())
        self.imaginary = nn.Parameter(eigenvalues.imag.float())
        self.C = nn.Parameter(torch.randn(self.state_shape) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(dim))
        self.out = GLUOutput(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        return x

    def system(self) -> System:
        wide = state_dtype(self.C.dtype)
        eigenvalues = torch.complex(-self.log_real.to(wide).exp(), self.imaginary.to(wide))
        step = self.log_step.to(wide).exp() * self.rate
        A, B = discretize_diagonal(eigenvalues, torch.ones_like(eigenvalues), step, self.discretization)
        return System(A, B, 2 * torch.view_as_complex(self.C.to(wide)).unsqueeze(1))

    def readout(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.addcmul(y.squeeze(3), self.D, u))


def reference(m: S4D, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, feature and token at a time, both numbers of each pair written out."""
    wide = torch.complex(x, x).dtype
    rows = []
    for sequence in x:
        columns = []
        for d in range(m.dim):
            half = torch.complex(-m.log_real[d].exp(), m.imaginary[d])
            eigenvalues, step = torch.cat([half, half.conj()]), m.log_step[d].exp() * m.rate
            if m.discretization == "zoh":
                A = torch.exp(step * eigenvalues)
                B = (A - 1) / eigenvalues
            else:
                A = (1 + step / 2 * eigenvalues) / (1 - step / 2 * eigenvalues)
                B = step / (1 - step / 2 * eigenvalues)
            C = torch.complex(m.C[d, :, 0], m.C[d, :, 1])
            C, h, y = torch.cat([C, C.conj()]), torch.zeros(len(eigenvalues), dtype=wide), []
            for u in sequence[:, d]:
                h = A * h + B * u
                y.append((C * h).sum().real + m.D[d] * u)
            columns.append(torch.stack(y))
        z = torch.stack(columns, 1)
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        a, b = (z @ m.out.linear.weight.mT + m.out.linear.bias).chunk(2, -1)
        rows.append(a * torch.sigmoid(b))
    return torch.stack(rows)
