"""S4D."""

import math

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_positive, check_size
from seriatim.mixers.state_space.invariant_base import InvariantMixer, System
from seriatim.nn.diagonal_system import DiagonalSystem
from seriatim.nn.diagonal_system import reference as reference_system
from seriatim.nn.glu_output import GLUOutput

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
        check_positive(rate=rate)
        self.dim, self.state_size, self.init, self.discretization = dim, state_size, init, discretization
        self.step_min, self.step_max, self.rate = step_min, step_max, rate
        self.state_shape = (dim, state_size // 2, 2)
        self.diagonal = DiagonalSystem(dim, 1, state_size, init, discretization, step_min, step_max)
        self.D = nn.Parameter(torch.randn(dim))
        self.out = GLUOutput(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        return x

    def system(self) -> System:
        return System(*self.diagonal(self.rate))

    def readout(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.addcmul(y.squeeze(3), self.D, u))


def reference(m: S4D, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, feature and token at a time, both numbers of each pair written out."""
    wide = torch.complex(x, x).dtype
    rows = []
    for sequence in x:
        columns = []
        for d in range(m.dim):
            A, B, C = reference_system(m.diagonal, d, m.rate)
            h, y = torch.zeros(m.state_size, dtype=wide), []
            for u in sequence[:, d]:
                h = A * h + B * u
                y.append((C @ h).real.squeeze() + m.D[d] * u)
            columns.append(torch.stack(y))
        z = torch.stack(columns, 1)
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        a, b = (z @ m.out.linear.weight.mT + m.out.linear.bias).chunk(2, -1)
        rows.append(a * torch.sigmoid(b))
    return torch.stack(rows)
