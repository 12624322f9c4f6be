"""S4."""

import math

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.errors import SeriatimError, check_one_of, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.invariant_base import InvariantMixer, System
from seriatim.nn.discretization import RULES, discretize, log_steps
from seriatim.nn.glu_output import GLUOutput
from seriatim.nn.hippo import normal_low_rank

__all__ = ["S4"]


class S4(InvariantMixer):
    r"""S4: for each feature a state space whose matrix is normal plus one of rank 1, beginning as HiPPO-LegS.

    .. math:: h' = (\Lambda - P P^*) h + B u, \quad y = \mathrm{Re}(C h) + D u, \quad
              \Lambda = -e^{a} + i\, b, \quad z_t = \mathrm{GLU}(\mathrm{gelu}(y_t))

    in tokens that lie a step e^s apart, Lambda, P, B and C complex numbers in conjugate pairs, of which one each is
    kept: 2 for a real state value. The real part of Lambda stays below 0, and P P^* only damps, so no state can grow.
    C and D begin normal, steps log-uniform, the rest as HiPPO-LegS in the basis of its normal part.

    The term of rank 1 couples both halves of a pair, so the state is kept in real coordinates, N numbers a feature.
    `forward` reads by chunks with the whole discretised matrix; `kernel_by_cauchy` is the paper's kernel, by generating
    function, Woodbury and Cauchy products, and `convolve(x, kernel_by_cauchy(T))` the same map by that. On a CPU both
    take about the same time to train.

    Args:
        dim: features in and out.
        state_size: N, real state values a feature; even.
        discretization: "bilinear", or "zoh" by the exponential of the whole matrix.
        step_min, step_max: bounds of the first steps.
        rate: steps between two tokens, 1 as trained; 2 reads data sampled half as often.

    Source: Gu, Goel and Ré, 2021, arXiv:2111.00396, sections 3 and 4; the form of Lambda and P P^*, which cannot
    become unstable, and the rest of the layer are its official code's.
    """

    def __init__(
        self,
        dim: int,
        state_size: int = 64,
        discretization: str = "bilinear",
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size)
        check_one_of("discretization", discretization, RULES)
        check_positive(rate=rate)
        start = normal_low_rank(state_size)
        self.dim, self.state_size, self.discretization = dim, state_size, discretization
        self.step_min, self.step_max, self.rate = step_min, step_max, rate
        self.state_shape = (dim, state_size)
        self.log_step = nn.Parameter(log_steps(dim, step_min, step_max))
        self.log_real = nn.Parameter((-start.eigenvalues.real).log().float().repeat(dim, 1))
        self.imaginary = nn.Parameter(start.eigenvalues.imag.float().repeat(dim, 1))
        self.P = nn.Parameter(torch.view_as_real(start.low_rank).float().repeat(dim, 1, 1))
        self.B = nn.Parameter(torch.view_as_real(start.B).float().repeat(dim, 1, 1))
        self.C = nn.Parameter(torch.randn(dim, state_size // 2, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(dim))
        self.out = GLUOutput(dim, dim)

    def project(self, x: Tensor) -> Tensor:
        return x

    def system(self) -> System:
        """In real coordinates: the real parts of the kept halves of all pairs, then their imaginary parts."""
        wide = state_dtype(self.C.dtype)
        real, imaginary = -self.log_real.to(wide).exp(), self.imaginary.to(wide)
        P, B, C = (z.to(wide).mT.flatten(1) for z in (self.P, self.B, self.C))
        turning = torch.diag_embed(imaginary)
        none = torch.zeros_like(turning)
        rows = torch.cat([none, -turning], 2), torch.cat([turning, none], 2)
        A = torch.cat(rows, 1) + torch.diag_embed(real.repeat(1, 2)) - 2 * P.unsqueeze(2) * P.unsqueeze(1)
        A, B = discretize(A, B, self._step(), self.discretization)
        sign = torch.cat([torch.ones_like(real), -torch.ones_like(real)], 1)
        return System(A, B, (2 * sign * C).unsqueeze(1))

    def readout(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.addcmul(y.squeeze(3), self.D, u))

    def kernel_by_cauchy(self, length: int) -> Tensor:
        r"""What `kernel` returns, (G, 1, length), by the paper's algorithm 1: no power of the matrix but the last.

        The kernel's transform is its generating function at the roots of unity. With
        :math:`z = 2 \frac{1 - \omega}{1 + \omega}` and :math:`\tilde C = C (I - \bar A^L)`, which cuts the kernel off
        after L tokens,

        .. math:: \hat K(\omega) = \frac{2}{1 + \omega}
                  \left[k_{\tilde C B} - k_{\tilde C P} (1 + k_{P^* P})^{-1} k_{P^* B}\right], \quad
                  k_{XY} = \sum_n \frac{\Delta X_n Y_n}{z - \Delta \Lambda_n}

        Raises:
            SeriatimError: the discretisation is not bilinear.
        """
        check_size(length=length)
        if self.discretization != "bilinear":
            raise SeriatimError(f"discretization is {self.discretization!r}; kernel_by_cauchy needs 'bilinear'")
        A, _, C = self.system()
        C = C - C @ torch.linalg.matrix_power(A, length)
        half, wide = self.state_size // 2, C.dtype
        step = self._step().unsqueeze(1)
        poles = step * torch.complex(-self.log_real.to(wide).exp(), self.imaginary.to(wide))
        P, B = (torch.view_as_complex(z.to(wide)) for z in (self.P, self.B))
        C = torch.complex(C[:, 0, :half], -C[:, 0, half:]) / 2
        products = step.unsqueeze(1) * torch.stack([C * B, C * P, P.conj() * B, P.conj() * P], 1)
        angle = 2 * math.pi / length * torch.arange((length + 1) // 2, dtype=torch.float64, device=C.device)
        nodes = torch.complex(torch.zeros_like(angle), 2 * torch.tan(angle / 2)).to(C.dtype)
        CB, CP, PB, PP = ops.cauchy(products, nodes, poles).unbind(1)
        spectrum = (1 + nodes / 2) * (CB - CP * PB / (1 + PP))  # 1 + z / 2 = 2 / (1 + omega)
        if length % 2 == 0:  # at omega = -1, where z is infinite
            last = products[:, 0].real.sum(1, keepdim=True)
            spectrum = torch.cat([spectrum, torch.complex(last, torch.zeros_like(last))], 1)
        return torch.fft.irfft(spectrum, n=length).unsqueeze(1)

    def _step(self) -> Tensor:
        return self.log_step.to(state_dtype(self.log_step.dtype)).exp() * self.rate


def reference(m: S4, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, feature and token at a time, with both numbers of each pair."""
    wide = torch.complex(x, x).dtype
    one = torch.eye(m.state_size, dtype=wide)
    rows = []
    for sequence in x:
        columns = []
        for d in range(m.dim):
            half = torch.complex(-m.log_real[d].exp(), m.imaginary[d])
            P, B, C = (torch.cat([h, h.conj()]) for h in (torch.complex(*z[d].T) for z in (m.P, m.B, m.C)))
            A, step = torch.diag(torch.cat([half, half.conj()])) - torch.outer(P, P.conj()), m.log_step[d].exp()
            step = step * m.rate
            if m.discretization == "bilinear":
                inverse = torch.linalg.inv(one - step / 2 * A)
                A, B = inverse @ (one + step / 2 * A), step * (inverse @ B)
            else:
                discrete = torch.matrix_exp(step * A)
                A, B = discrete, torch.linalg.solve(A, (discrete - one) @ B)
            h, y = torch.zeros(m.state_size, dtype=wide), []
            for u in sequence[:, d]:
                h = A @ h + B * u
                y.append((C * h).sum().real + m.D[d] * u)
            columns.append(torch.stack(y))
        z = torch.stack(columns, 1)
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        a, b = (z @ m.out.linear.weight.mT + m.out.linear.bias).chunk(2, -1)
        rows.append(a * torch.sigmoid(b))
    return torch.stack(rows)
