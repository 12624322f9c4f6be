"""LSSL."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.errors import SeriatimError, check_one_of, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.invariant_base import InvariantMixer, System
from seriatim.nn.discretization import RULES, discretize, log_steps
from seriatim.nn.hippo import legs

__all__ = ["LSSL"]


class LSSL(InvariantMixer):
    r"""LSSL: linear state spaces with a trained matrix that all features share, and a trained step for each.

    .. math:: h' = A h + B u, \quad y = C h + D u, \quad A = -P (E + T^{-1}) Q, \quad z_t = W\, \mathrm{gelu}(y_t) + b

    in tokens that lie a step e^s apart; P, E and Q are diagonal, T is tridiagonal. Each feature is read by `channels`
    rows C, all of which W mixes. A begins as HiPPO-LegS, C and D normal, steps log-uniform. Nothing keeps A stable.

    Views: `forward` is the recurrent one, `convolve` the convolutional one, `continuous` gives the differential
    equation, and `forward_at` reads tokens at uneven times. Training A wants a lower learning rate than the rest; the
    paper's code takes 1e-4.

    Args:
        dim: features in and out.
        state_size: N, state values a feature.
        channels: M, answers of each feature's system.
        discretization: "bilinear" (the generalised one with alpha = 1/2) or "zoh".
        step_min, step_max: bounds of the first steps.
        rate: steps between two tokens, 1 as trained; 2 reads data sampled half as often.

    Source: Gu et al., 2021, arXiv:2110.13985, sections 3 and 4; A as in its official code.
    """

    def __init__(
        self,
        dim: int,
        state_size: int = 64,
        channels: int = 1,
        discretization: str = "bilinear",
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size, channels=channels)
        check_one_of("discretization", discretization, RULES)
        check_positive(rate=rate)
        self.dim, self.state_size, self.channels, self.discretization = dim, state_size, channels, discretization
        self.step_min, self.step_max, self.rate = step_min, step_max, rate
        self.state_shape = (dim, state_size)
        n, root = torch.arange(state_size, dtype=torch.float64), legs(state_size)[1].float()
        self.log_step = nn.Parameter(log_steps(dim, step_min, step_max))
        self.P, self.Q, self.B = (nn.Parameter(root.clone()) for _ in range(3))
        self.E = nn.Parameter((-n / (2 * n + 1)).float())
        self.T_diagonal = nn.Parameter(torch.ones(state_size))  # the inverse of T is the lower triangle of ones
        self.T_below = nn.Parameter(-torch.ones(state_size - 1))
        self.T_above = nn.Parameter(torch.zeros(state_size - 1))
        self.C = nn.Parameter(torch.randn(dim, channels, state_size))
        self.D = nn.Parameter(torch.randn(dim, channels))
        self.out = nn.Linear(dim * channels, dim)

    def project(self, x: Tensor) -> Tensor:
        return x

    def system(self) -> System:
        return self._discrete(1.0)

    def readout(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return self.out(F.gelu(torch.addcmul(y, self.D, u.unsqueeze(3))).flatten(2))

    def continuous(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A (G, N, N), B (G, N), C (G, M, N) and D (G, M) of h' = A h + B u, y = C h + D u, in trained tokens' time."""
        A, B, step = self._equation()
        return A * step[:, None, None], B * step.unsqueeze(1), self.C.to(A.dtype), self.D.to(A.dtype)

    def forward_at(self, x: Tensor, gaps: Sequence[float], state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What `forward` returns where tokens are not evenly spaced.

        Args:
            x: (B, T, dim).
            gaps: T numbers above 0, of each token how long after the one before it comes; `forward` has 1 everywhere.
            state: what an earlier call returned; None is nothing read.

        Raises:
            SeriatimError: there are not T gaps, or one is not above 0.
        """
        if len(gaps) != x.size(1):
            raise SeriatimError(f"gaps has {len(gaps)} numbers; x has {x.size(1)} tokens")
        state = self.init_state(x.size(0)) if state is None else state
        u, answers = self.project(x), [x.new_zeros(x.size(0), 0, self.dim, self.channels)]
        for t, gap in enumerate(gaps):
            check_positive(gap=gap)
            y, state = ops.invariant_scan(u[:, t : t + 1], *self._discrete(gap), state=state)
            answers.append(y)
        return self.readout(x, u, torch.cat(answers, 1)), state

    def _equation(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, B and the steps."""
        wide = state_dtype(self.C.dtype)
        P, Q, E, B, diagonal, below, above, log_step = (
            z.to(wide)
            for z in (self.P, self.Q, self.E, self.B, self.T_diagonal, self.T_below, self.T_above, self.log_step)
        )
        T = torch.diag_embed(diagonal) + torch.diag_embed(below, -1) + torch.diag_embed(above, 1)
        return -P.unsqueeze(1) * (torch.diag_embed(E) + torch.linalg.inv(T)) * Q, B, log_step.exp() * self.rate

    def _discrete(self, gap: float) -> System:
        A, B, step = self._equation()
        A, B = discretize(A, B, step * gap, self.discretization)
        return System(A, B, self.C.to(A.dtype))


def reference(m: LSSL, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, feature and token at a time."""
    one = torch.eye(m.state_size, dtype=x.dtype)
    T = torch.diag(m.T_diagonal)
    for n in range(m.state_size - 1):
        T = T + m.T_below[n] * torch.outer(one[n + 1], one[n]) + m.T_above[n] * torch.outer(one[n], one[n + 1])
    A = -torch.diag(m.P) @ (torch.diag(m.E) + torch.linalg.inv(T)) @ torch.diag(m.Q)
    rows = []
    for sequence in x:
        columns = []
        for d in range(m.dim):
            step = m.log_step[d].exp() * m.rate
            if m.discretization == "bilinear":
                inverse = torch.linalg.inv(one - step / 2 * A)
                matrix, vector = inverse @ (one + step / 2 * A), step * (inverse @ m.B)
            else:
                matrix = torch.matrix_exp(step * A)
                vector = torch.linalg.solve(A, (matrix - one) @ m.B)
            h, y = torch.zeros(m.state_size, dtype=x.dtype), []
            for u in sequence[:, d]:
                h = matrix @ h + vector * u
                y.append(m.C[d] @ h + m.D[d] * u)
            columns.append(torch.stack(y))
        z = torch.stack(columns, 1)
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        rows.append(z.flatten(1) @ m.out.weight.mT + m.out.bias)
    return torch.stack(rows)
