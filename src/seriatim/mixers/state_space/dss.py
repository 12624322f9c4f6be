"""DSS."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.invariant_base import InvariantMixer, System
from seriatim.nn.discretization import discretize_diagonal, log_steps
from seriatim.nn.hippo import diagonal_start

__all__ = ["DSS"]

VARIANTS = ("exp", "softmax")
EPSILON = 1e-7


class DSS(InvariantMixer):
    r"""DSS: a diagonal state space for each feature, all with the same eigenvalues and each with its own step.

    .. math:: h_t = e^{\Delta \lambda} h_{t-1} + b\, u_t, \quad y_t = \mathrm{Re}(w h_t) + D u_t, \quad
              z_t = W_o\, \mathrm{gelu}(y_t)

    "exp" keeps the real parts of the eigenvalues below 0 (they are -e^a) and holds the input for a step,
    :math:`b = (e^{\Delta \lambda} - 1) / \lambda`. "softmax" lets them be of any sign and makes each kernel a softmax
    over `length` tokens, divided by lambda:

    .. math:: b = \frac{1}{\lambda \sum_{k < L} e^{k \Delta \lambda}}

    with the reciprocal of the sum S taken as :math:`\bar S / (S \bar S + 10^{-7})`. The paper takes for L the length of
    the sequence; then an output would depend on how many tokens come after it, and no state could be carried. Here L
    is fixed: on sequences of that length the two are one map, and on longer ones kernels go on beyond L, where those
    of a positive real part grow. (Carried as a state they must fit a float: e^{64 step Re(lambda)} below its largest.)

    Eigenvalues begin as HiPPO-LegS' of positive imaginary part, one of each pair; w and D normal, steps log-uniform.

    Args:
        dim: features in and out.
        state_size: real state values a feature, half as many complex ones; even.
        variant: "exp" or "softmax".
        length: L, tokens that a softmax runs over.
        step_min, step_max: bounds of the first steps.
        rate: steps between two tokens, 1 as trained; 2 reads data sampled half as often.

    Source: Gupta, Gu and Berant, 2022, arXiv:2203.14343, section 3; the rest of the layer is its official code's.
    """

    def __init__(
        self,
        dim: int,
        state_size: int = 128,
        variant: str = "exp",
        length: int = 1024,
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size, length=length)
        check_one_of("variant", variant, VARIANTS)
        check_positive(rate=rate)
        eigenvalues = diagonal_start("legs", state_size)
        self.dim, self.state_size, self.variant, self.length = dim, state_size, variant, length
        self.step_min, self.step_max, self.rate = step_min, step_max, rate
        self.state_shape = (dim, state_size // 2, 2)
        self.log_step = nn.Parameter(log_steps(dim, step_min, step_max))
        real = (-eigenvalues.real).log() if variant == "exp" else eigenvalues.real
        self.real = nn.Parameter(real.float())  # of "exp" the logarithm of its size
        self.imaginary = nn.Parameter(eigenvalues.imag.float())
        self.C = nn.Parameter(torch.randn(self.state_shape))
        self.D = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        return x

    def system(self) -> System:
        wide = state_dtype(self.C.dtype)
        real, step = self.real.to(wide), self.log_step.to(wide).exp()
        eigenvalues = torch.complex(-real.exp() if self.variant == "exp" else real, self.imaginary.to(wide))
        eigenvalues = eigenvalues.expand(self.dim, -1)
        if self.variant == "exp":
            A, B = discretize_diagonal(eigenvalues, torch.ones_like(eigenvalues), step * self.rate)
        else:
            A, B = self._softmax(eigenvalues, step.unsqueeze(1))
        return System(A, B, torch.view_as_complex(self.C.to(wide)).unsqueeze(1))

    def _softmax(self, eigenvalues: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Sums of powers above 1 are taken backwards, from the largest, so that none overflows."""
        grows = eigenvalues.real > 0
        fading = torch.where(grows, -eigenvalues, eigenvalues) * step
        total = torch.expm1(fading * self.length) / torch.expm1(fading * self.rate)
        inverse = total.conj() / (total.abs().square() + EPSILON)
        last = torch.where(grows, fading * (self.length - self.rate), 0.0).exp()
        return (eigenvalues * step * self.rate).exp(), inverse * last / eigenvalues

    def readout(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.out(F.gelu(torch.addcmul(y.squeeze(3), self.D, u)))


def reference(m: DSS, x: Tensor) -> Tensor:
    """The paper's kernels, written out, and the sum over earlier tokens: one sequence, feature and token at a time."""
    steps = torch.arange(max(m.length, x.size(1)), dtype=x.dtype)
    rows = []
    for sequence in x:
        columns = []
        for d in range(m.dim):
            step, kernel = m.log_step[d].exp(), torch.zeros_like(steps)
            for n in range(m.state_size // 2):
                w = torch.complex(m.C[d, n, 0], m.C[d, n, 1])
                if m.variant == "exp":
                    eigenvalue = torch.complex(-m.real[n].exp(), m.imaginary[n])
                    b = (torch.exp(eigenvalue * step * m.rate) - 1) / eigenvalue
                    kernel = kernel + (w * b * torch.exp(eigenvalue * step * m.rate * steps)).real
                else:
                    eigenvalue = torch.complex(m.real[n], m.imaginary[n])
                    powers = eigenvalue * step * steps
                    powers = powers - powers[: m.length].real.max()
                    total = powers[: m.length].exp().sum()
                    inverse = total.conj() / (total.abs() ** 2 + 1e-7)
                    kernel = kernel + (w / eigenvalue * powers.exp() * inverse).real
            u = sequence[:, d]
            y = [(kernel[: t + 1].flip(0) * u[: t + 1]).sum() + m.D[d] * u[t] for t in range(len(u))]
            columns.append(torch.stack(y))
        z = torch.stack(columns, 1)
        rows.append((z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))) @ m.out.weight.mT + m.out.bias)
    return torch.stack(rows)
