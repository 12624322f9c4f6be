"""Gated state spaces."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_divisible, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.invariant_base import InvariantMixer, System
from seriatim.nn.discretization import discretize_diagonal

__all__ = ["GSS"]


class GSS(InvariantMixer):
    r"""GSS: diagonal state spaces of a few features, between gates of many.

    .. math:: u_t = \mathrm{norm}(\mathrm{gelu}(W_u x_t)), \quad
              h_t = e^{\lambda} h_{t-1} + \frac{e^{\lambda} - 1}{\lambda} u_t, \quad
              y_t = \mathrm{Re}(C h_t) + D u_t

    .. math:: z_t = W_o (W_y y_t \odot \mathrm{gelu}(W_v x_t)) + b, \quad \lambda = -e^{a} + i\, e^{b}

    A simplified DSS: there is no step, the features share eigenvalues, and a, b, C and D begin as normal numbers.

    Args:
        dim: features in and out.
        systems: features that the state spaces read; None is dim / 4.
        inner: features of the gate; None is 4 dim.
        state_size: real state values a feature of the state spaces, half as many complex ones; even.

    Source: Mehta et al., 2022, arXiv:2206.13947, section 3 and its listing.
    """

    def __init__(self, dim: int, systems: int | None = None, inner: int | None = None, state_size: int = 1024):
        super().__init__()
        check_size(dim=dim, state_size=state_size)
        if systems is None:
            check_divisible(dim=dim, parts=4)
        if state_size % 2:
            raise SeriatimError(f"state_size is {state_size}; it must be even: half of them are imaginary parts")
        count, width = dim // 4 if systems is None else systems, 4 * dim if inner is None else inner
        check_size(systems=count, inner=width)
        self.dim, self.systems, self.inner, self.state_size = dim, systems, inner, state_size
        self.state_shape = (count, state_size // 2, 2)
        self.drive = nn.Linear(dim, count, bias=False)
        self.norm = nn.LayerNorm(count)
        self.gate = nn.Linear(dim, width, bias=False)
        self.log_real = nn.Parameter(torch.randn(state_size // 2))
        self.log_imaginary = nn.Parameter(torch.randn(state_size // 2))
        self.C = nn.Parameter(torch.randn(self.state_shape))
        self.D = nn.Parameter(torch.randn(count))
        self.up = nn.Linear(count, width, bias=False)
        self.out = nn.Linear(width, dim)

    def project(self, x: Tensor) -> Tensor:
        return self.norm(F.gelu(self.drive(x)))

    def system(self) -> System:
        wide = state_dtype(self.C.dtype)
        eigenvalues = torch.complex(-self.log_real.to(wide).exp(), self.log_imaginary.to(wide).exp())
        eigenvalues = eigenvalues.expand(self.state_shape[:2])
        one = torch.ones(self.state_shape[0], dtype=wide, device=eigenvalues.device)
        A, B = discretize_diagonal(eigenvalues, torch.ones_like(eigenvalues), one)
        return System(A, B, torch.view_as_complex(self.C.to(wide)).unsqueeze(1))

    def readout(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.out(self.up(torch.addcmul(y.squeeze(3), self.D, u)) * F.gelu(self.gate(x)))


def reference(m: GSS, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, feature and token at a time."""
    wide = torch.complex(x, x).dtype
    rows = []
    for sequence in x:
        u = _gelu(sequence @ m.drive.weight.mT)
        centred = u - u.mean(1, keepdim=True)
        u = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * m.norm.weight + m.norm.bias
        eigenvalues = torch.complex(-m.log_real.exp(), m.log_imaginary.exp())
        columns = []
        for d in range(u.size(1)):
            C, h, y = torch.complex(m.C[d, :, 0], m.C[d, :, 1]), torch.zeros(len(eigenvalues), dtype=wide), []
            for value in u[:, d]:
                h = eigenvalues.exp() * h + (eigenvalues.exp() - 1) / eigenvalues * value
                y.append((C * h).sum().real + m.D[d] * value)
            columns.append(torch.stack(y))
        z = torch.stack(columns, 1) @ m.up.weight.mT
        rows.append((z * _gelu(sequence @ m.gate.weight.mT)) @ m.out.weight.mT + m.out.bias)
    return torch.stack(rows)


def _gelu(z: Tensor) -> Tensor:
    return z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
