"""The family of selective state spaces: systems that the token steers, of channels or of heads."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.pointwise import silu
from seriatim.nn.short_conv import ShortConv

__all__ = [
    "EIGENVALUES",
    "DualInputs",
    "DualState",
    "SelectiveInputs",
    "SelectiveMixer",
    "SelectiveState",
    "dual_scan",
]

EIGENVALUES = ("positive", "signed")


class SelectiveState(NamedTuple):
    """What is carried from segment to segment."""

    tail: Tensor  # (B, conv_size - 1, E): the last inputs of the convolution
    system: Tensor  # (B, E, N): the state of the linear system


class SelectiveInputs(NamedTuple):
    """What a token chooses. delta is the step of the discretisation, above 0."""

    delta: Tensor  # (B, T, E)
    B: Tensor  # (B, T, H N)
    C: Tensor  # (B, T, H N)


class SelectiveMixer(Mixer):
    r"""E channels, each with N state values, discretised per token: :func:`seriatim.ops.selective_scan`.

    .. math:: h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t x_t, \quad y_t = C_t^\top h_t + D x_t

    With `eigenvalues` "signed" instead of "positive", h_{t-1} is multiplied by 2 e^{\Delta_t A} - 1. With `heads` (H),
    each of so many equal parts of the channels has a B and a C of its own.

    A method sets `inner` (E), `state_size` (N), `conv`, `A_log` with A = -exp(A_log), and `D`, and writes `project`,
    `select` and `readout`; the scan, resets and padding are done here.
    """

    inner: int
    state_size: int
    conv: ShortConv
    A_log: nn.Parameter
    D: nn.Parameter
    eigenvalues: str = "positive"
    heads: int = 1

    @abstractmethod
    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The channels that enter the convolution, and the gate: each (B, T, E)."""

    @abstractmethod
    def select(self, u: Tensor) -> SelectiveInputs:
        """Step and ports from the channels after the convolution, u (B, T, E)."""

    @abstractmethod
    def readout(self, y: Tensor, gate: Tensor) -> Tensor:
        """The output (B, T, dim) from the system's, y (B, T, E)."""

    def init_state(self, batch: int) -> SelectiveState:
        tail = self.new_state(batch, self.conv.size - 1, self.inner)
        return SelectiveState(tail, self.new_state(batch, self.inner, self.state_size))

    def mix(
        self, x: Tensor, state: SelectiveState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, SelectiveState]:
        u, gate = self.project(x)
        u, tail = self.conv(u, state.tail, reset, lengths)
        u = silu(u)
        delta, B, C = self.select(u)
        if lengths is not None:  # a step of length 0 changes nothing
            delta = ragged.mask(delta, ragged.real_tokens(lengths, x.size(1)))
        y, system = self._scan(u, delta, B, C, state.system, reset)
        return self.readout(y, gate), SelectiveState(tail, system)

    @linear_in("u", shared=False)
    def _scan(
        self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        A, signed = -torch.exp(self.A_log.to(state_dtype(self.A_log.dtype))), self.eigenvalues == "signed"
        if self.heads == 1:
            return ops.selective_scan(u, delta, A, B, C, self.D, state=state, reset=reset, signed=signed)
        parts = (z.chunk(self.heads, -1) for z in (u, delta, A.mT, B, C, self.D, state.mT))
        found = [
            ops.selective_scan(u, delta, A.mT, B, C, D, state=start.mT, reset=reset, signed=signed)
            for u, delta, A, B, C, D, start in zip(*parts, strict=True)
        ]
        ys, states = zip(*found, strict=True)
        return torch.cat(ys, -1), torch.cat(states, 1)


class DualInputs(NamedTuple):
    """What enters systems whose A is one number a head (`dual_scan`)."""

    u: Tensor  # (B, T, H, P)
    step: Tensor  # (B, T, H)
    B: Tensor  # (B, T, G, N)
    C: Tensor  # (B, T, G, N)


class DualState(NamedTuple):
    """What is carried from segment to segment."""

    tail: Tensor  # (B, conv_size - 1, F): the last inputs of the convolution
    system: Tensor  # (B, H, N, P): the state of every head's system


def dual_scan(
    x: Tensor, step: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor | None, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    r"""Systems whose A is one number a head, as linear attention with decay (state space duality).

    .. math:: h_t = \alpha_t h_{t-1} + \Delta_t B_t x_t^\top, \quad y_t = h_t^\top C_t

    Args:
        x: (B, T, H, P).
        step: (B, T, H), the step sizes.
        log_decay: (B, T, H), the logarithms of alpha.
        B, C: (B, T, G, N), each of the G groups for H / G heads.
        state: (B, H, N, P), or None for zeros.
        reset: (B, T) bool or None.

    Returns:
        y (B, T, H, P) and the state after the last token.

    Source: Dao and Gu, 2024, arXiv:2405.21060, section 6.
    """
    y, state = ops.matrix_scan(C, B, step.unsqueeze(-1) * x, log_decay, state=state, reset=reset)
    return y.to(x.dtype), state
