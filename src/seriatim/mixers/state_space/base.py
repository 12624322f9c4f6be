"""The family of selective state spaces: a short convolution, then a diagonal system that the token steers."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.pointwise import silu
from seriatim.nn.short_conv import ShortConv

__all__ = ["EIGENVALUES", "SelectiveInputs", "SelectiveMixer", "SelectiveState"]


EIGENVALUES = ("positive", "signed")


class SelectiveState(NamedTuple):
    """What is carried from segment to segment."""

    tail: Tensor  # (B, conv_size - 1, E): the last inputs of the convolution
    system: Tensor  # (B, E, N): the state of the linear system


class SelectiveInputs(NamedTuple):
    """What a token chooses. delta is the step of the discretisation, above 0."""

    delta: Tensor  # (B, T, E)
    B: Tensor  # (B, T, N)
    C: Tensor  # (B, T, N)


class SelectiveMixer(Mixer):
    r"""E channels, each with N state values, discretised per token: :func:`seriatim.ops.selective_scan`.

    .. math:: h_t = e^{\Delta_t A} h_{t-1} + \Delta_t B_t x_t, \quad y_t = C_t^\top h_t + D x_t

    With `eigenvalues` "signed" instead of "positive", h_{t-1} is multiplied by 2 e^{\Delta_t A} - 1.

    A method sets `inner` (E), `state_size` (N), `conv`, `A_log` with A = -exp(A_log), and `D`, and writes `project`,
    `select` and `readout`; the scan, resets and padding are done here.
    """

    inner: int
    state_size: int
    conv: ShortConv
    A_log: nn.Parameter
    D: nn.Parameter
    eigenvalues: str = "positive"

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
        A = -torch.exp(self.A_log.to(state_dtype(self.A_log.dtype)))
        signed = self.eigenvalues == "signed"
        y, system = ops.selective_scan(u, delta, A, B, C, self.D, state=state.system, reset=reset, signed=signed)
        return self.readout(y, gate), SelectiveState(tail, system)
