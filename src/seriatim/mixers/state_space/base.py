"""The family of state spaces: selective ones, which the token steers, and linear time-invariant ones.

Of the latter some have a small system for each feature, some one large system that reads and answers all of them.
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.pointwise import silu
from seriatim.nn.short_conv import ShortConv
from seriatim.ops.precision import full_precision

__all__ = [
    "EIGENVALUES",
    "InvariantMixer",
    "MIMOMixer",
    "MIMOSystem",
    "SelectiveInputs",
    "SelectiveMixer",
    "SelectiveState",
    "System",
    "read_system",
]


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


class System(NamedTuple):
    """G linear systems in discrete time: h_t = A h_{t-1} + B u_t, y_t = Re(C h_t)."""

    A: Tensor  # (G, N), a diagonal, or (G, N, N)
    B: Tensor  # (G, N)
    C: Tensor  # (G, M, N)


class InvariantMixer(Mixer):
    r"""G linear systems, the same at every token: :func:`seriatim.ops.invariant_scan`.

    A method sets `state_shape`, (G, N) or where states are complex (G, N, 2), and writes `project`, `system` and
    `readout`; the scan, resets and padding are done here. Of the three views of such a system `forward` is the
    recurrent one, `convolve` the convolutional one with `kernel`; the continuous one is the method's own, and `rate`
    says how many of the steps that it was trained with lie between two tokens.
    """

    state_shape: tuple[int, ...]
    rate: float = 1.0

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """What drives the systems, (B, T, G), from the tokens x (B, T, dim)."""

    @abstractmethod
    def system(self) -> System:
        """The systems in discrete time."""

    @abstractmethod
    def readout(self, x: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """The output (B, T, dim) from the tokens x, the drive u (B, T, G) and the answers y (B, T, G, M)."""

    def init_state(self, batch: int) -> Tensor:
        return self.new_state(batch, *self.state_shape)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        u = self.project(x)
        y, state = read_system(self.system(), u, state, reset, lengths)
        return self.readout(x, u, y), state

    def kernel(self, length: int) -> Tensor:
        """The answers to an input of 1 at the first token: Re(C A^i B), (G, M, length)."""
        A, B, C = self.system()
        impulse = torch.zeros(1, length, B.size(0), dtype=B.real.dtype, device=B.device)
        impulse[:, :1] = 1.0
        return ops.invariant_scan(impulse, A, B, C)[0].squeeze(0).movedim(0, 2)

    def convolve(self, x: Tensor) -> Tensor:
        """What `forward` returns for x (B, T, dim), by a convolution with the whole kernel instead of the scan."""
        u = self.project(x)
        kernel = self.kernel(max(1, x.size(1)))
        answers = kernel.size(1)
        y, _ = ops.long_conv(u.repeat_interleave(answers, 2), kernel.flatten(0, 1))
        return self.readout(x, u, y.unflatten(2, (-1, answers)))


def read_system(
    system: System, u: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The answers (B, T, G, M) of systems driven by u (B, T, G), and the state after the segment.

    A complex state is (B, G, N, 2), real and imaginary parts.
    """
    parts = state.dim() == 4
    start = torch.view_as_complex(state.contiguous()) if parts else state
    y, end = ops.invariant_scan(u, *system, state=start, reset=reset, lengths=lengths)
    return y, torch.view_as_real(end) if parts else end


class MIMOSystem(NamedTuple):
    """One system in discrete time that reads and answers vectors, all complex: h_t = A h_{t-1} + B x_t."""

    A: Tensor  # (N,), the diagonal
    B: Tensor  # (N, dim)
    C: Tensor  # (dim, N)


class MIMOMixer(Mixer):
    r"""One diagonal complex system, the same at every token, for all features: :func:`seriatim.ops.diagonal_scan`.

    .. math:: h_t = A h_{t-1} + B x_t, \quad y_t = \mathrm{Re}(C h_t) + D x_t

    A method sets `states` (N) and `D` (dim,), and writes `system` and `readout`; the scan, resets and padding are done
    here. `convolve` computes the same map by convolutions with `kernel`.
    """

    states: int
    D: nn.Parameter

    @abstractmethod
    def system(self) -> MIMOSystem:
        """The system in discrete time, complex64 or complex128."""

    @abstractmethod
    def readout(self, y: Tensor) -> Tensor:
        """The output (B, T, dim) from the answers y (B, T, dim)."""

    def init_state(self, batch: int) -> Tensor:
        return self.new_state(batch, self.states, 2)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        A, B, C = self.system()
        start = torch.view_as_complex(state.contiguous())
        with full_precision(x.device):  # products of real numbers, a complex one as two
            inputs = torch.view_as_real(B).movedim(2, 1).flatten(0, 1)
            drive = torch.view_as_complex(F.linear(x.to(B.real.dtype), inputs).unflatten(2, (-1, 2)))
            h, end = ops.diagonal_scan(A, drive, state=start, reset=reset)
            y = F.linear(torch.view_as_real(h).flatten(2), torch.view_as_real(C.conj_physical()).flatten(1))
        if lengths is not None:
            end = ragged.last(h, start, lengths)
        return self.readout(torch.addcmul(y.to(x.dtype), self.D, x)), torch.view_as_real(end)

    def kernel(self, length: int) -> Tensor:
        """How every feature answers to every other: Re(C A^i B), (dim, dim, length)."""
        A, B, C = self.system()
        powers = A.unsqueeze(1) ** torch.arange(length, device=A.device)
        return torch.einsum("on,nt,ni->oit", C, powers, B).real

    def convolve(self, x: Tensor) -> Tensor:
        """What `forward` returns for x (B, T, dim), by convolutions with the whole kernel instead of the scan."""
        kernel = self.kernel(max(1, x.size(1)))
        y, _ = ops.long_conv(x.repeat(1, 1, self.dim), kernel.flatten(0, 1))
        return self.readout(torch.addcmul(y.unflatten(2, (self.dim, -1)).sum(3), self.D, x))
