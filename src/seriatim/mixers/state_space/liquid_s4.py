"""Liquid-S4."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.derived import Derived
from seriatim.core.errors import SeriatimError, check_one_of, check_positive, check_size
from seriatim.core.mixer import Mixer
from seriatim.mixers.state_space.invariant_base import System, read_system, real_system
from seriatim.nn.diagonal_system import DiagonalSystem
from seriatim.nn.diagonal_system import reference as reference_system
from seriatim.nn.glu_output import GLUOutput
from seriatim.ops.short_conv import last_inputs

__all__ = ["LiquidS4", "LiquidS4State"]

KERNELS = ("pb", "kb")


class LiquidS4State(NamedTuple):
    """What is carried from segment to segment."""

    tail: Tensor  # (B, order - 1, D): the last inputs
    system: Tensor  # (B, D, N / 2, 2)


class LiquidS4(Mixer):
    r"""Liquid-S4: a state space whose transition depends on the input, unrolled to products of neighbouring inputs.

    The liquid system is :math:`h_t = (A + B u_t 1^\top) h_{t-1} + B u_t`. Unrolled, its answers are those of S4 to the
    inputs, and to products of p of them with the weight :math:`B^p = B (1^\top B)^{p-1}`. Of these the ones of
    neighbours are kept, up to `order` P:

    .. math:: c_t = \sum_{p=2}^{P} (1^\top B)^{p-1} u_t u_{t-1} \cdots u_{t-p+1}

    With the kernel "kb" they are kept for as long as inputs are, :math:`C A^i B^p`; with "pb" only the present ones
    are, A being left out of them:

    .. math:: kb: \; h_t = A h_{t-1} + B (u_t + c_t), \; y_t = C h_t, \qquad
              pb: \; h_t = A h_{t-1} + B u_t, \; y_t = C h_t + C B c_t

    .. math:: z_t = \mathrm{GLU}(\mathrm{gelu}(y_t + D u_t))

    for each feature, with a diagonal A of complex numbers in conjugate pairs, as in `s4d`.

    Args:
        dim: features in and out.
        state_size: N, real state values a feature; even.
        kernel: "pb" or "kb".
        order: P, inputs in a product at most, at least 2.
        init, discretization, step_min, step_max: as of `s4d`.
        rate: steps between two tokens, 1 as trained.

    Source: Hasani et al., 2022, arXiv:2209.12951, section 3; powers of B: its official code. That code reverses
    the products in time and is not causal; here they stand where the unrolled system has them.
    """

    def __init__(
        self,
        dim: int,
        state_size: int = 64,
        kernel: str = "pb",
        order: int = 2,
        init: str = "legs",
        discretization: str = "bilinear",
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size, order=order)
        check_one_of("kernel", kernel, KERNELS)
        check_positive(rate=rate)
        if order < 2:
            raise SeriatimError(f"order is {order}; it must be at least 2: products of 1 are the inputs")
        self.dim, self.state_size, self.kernel, self.order = dim, state_size, kernel, order
        self.init, self.discretization, self.rate = init, discretization, rate
        self.step_min, self.step_max = step_min, step_max
        self.system = DiagonalSystem(dim, 1, state_size, init, discretization, step_min, step_max, weighted=True)
        self.D = nn.Parameter(torch.randn(dim))
        self.out = GLUOutput(dim, dim)
        self.kept, self.kept_weights = Derived(real_system), Derived(tuple)

    def init_state(self, batch: int) -> LiquidS4State:
        tail = self.new_state(batch, self.order - 1, self.dim)
        return LiquidS4State(tail, self.new_state(batch, self.dim, self.state_size // 2, 2))

    def mix(
        self, x: Tensor, state: LiquidS4State, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, LiquidS4State]:
        if x.size(1) == 1:
            weight, through = self.kept_weights(self._products_weights)
        else:
            self.kept_weights.forget()
            weight, through = self._products_weights()
        u = x.to(weight.dtype)
        products, tail = self._products(u, weight, state.tail, reset, lengths)
        drive = u + products if self.kernel == "kb" else u
        y, end = read_system(self.kept, self._discrete, drive, state.system, reset, lengths)
        y = y.squeeze(3)
        if self.kernel == "pb":
            y = y + through * products
        return self.out(torch.addcmul(y, self.D, u).to(x.dtype)), LiquidS4State(tail, end)

    def _discrete(self) -> System:
        return System(*self.system(self.rate))

    def _products_weights(self) -> tuple[Tensor, Tensor]:
        """Of a product of neighbours, and of what it adds to the answer without the state, (D,) each."""
        _, B, C = self.system(self.rate)
        return 2 * B.real.sum(1), (C.squeeze(1) * B).sum(1).real

    def _products(
        self, u: Tensor, weight: Tensor, tail: Tensor, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The weighted sum of the products of neighbours, (B, T, D), and the inputs to carry on."""
        before = self.order - 1
        inputs = torch.cat([tail, u], 1)
        document = None if reset is None else F.pad(ragged.segments(reset), (before, 0))
        product, total = u, torch.zeros_like(u)
        for lag in range(1, self.order):
            earlier = inputs[:, before - lag : inputs.size(1) - lag]
            if document is not None:
                same = document[:, before - lag : inputs.size(1) - lag] == document[:, before:]
                earlier = ragged.mask(earlier, same)
            product = weight * product * earlier
            total = total + product
        return total, last_inputs(inputs, document, lengths, self.order)


def reference(m: LiquidS4, x: Tensor) -> Tensor:
    """The unrolled system, one sequence, feature and token at a time."""
    wide = torch.complex(x, x).dtype
    rows = []
    for sequence in x:
        columns = []
        for d in range(m.dim):
            A, B, C = reference_system(m.system, d, m.rate)
            u, h, y = sequence[:, d], torch.zeros(m.state_size, dtype=wide), []
            for t in range(len(u)):
                h, now = A * h + B * u[t], m.D[d] * u[t]
                for p in range(2, min(m.order, t + 1) + 1):
                    product = B * B.sum() ** (p - 1) * u[t - p + 1 : t + 1].prod()
                    if m.kernel == "kb":
                        h = h + product
                    else:
                        now = now + (C * product).sum().real
                y.append((C * h).sum().real + now)
            columns.append(torch.stack(y))
        z = torch.stack(columns, 1)
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        a, b = (z @ m.out.linear.weight.mT + m.out.linear.bias).chunk(2, -1)
        rows.append(a * torch.sigmoid(b))
    return torch.stack(rows)
