"""The families of state spaces: selective ones, which the token steers, of channels or of heads, and invariant ones."""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.derived import Derived
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.pointwise import silu
from seriatim.nn.short_conv import ShortConv

__all__ = [
    "EIGENVALUES",
    "DualState",
    "InvariantMixer",
    "SelectiveInputs",
    "SelectiveMixer",
    "SelectiveState",
    "System",
    "dual_scan",
    "read_system",
    "response",
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
    shared = x.size(2) // B.size(2)
    k, q = (z.unsqueeze(3).expand(-1, -1, -1, shared, -1).flatten(2, 3) for z in (B, C))  # of one group a view
    y, state = ops.matrix_scan(q, k, step.unsqueeze(-1) * x, log_decay, state=state, reset=reset)
    return y.to(x.dtype), state


class System(NamedTuple):
    """G linear systems in discrete time: h_t = A h_{t-1} + B u_t, y_t = Re(C h_t)."""

    A: Tensor  # (G, N), a diagonal, or (G, N, N), real
    B: Tensor  # (G, N)
    C: Tensor  # (G, M, N)


_systems: Derived[System] = Derived()  # of mixers that are stepping


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
        if x.size(1) == 1 and reset is None and lengths is None and not torch.is_grad_enabled():
            y, state = _read_token(_systems(self._real_system), u, state)
        else:
            y, state = read_system(self.system(), u, state, reset, lengths)
        return self.readout(x, u, y), state

    def _real_system(self) -> System:
        """The systems, complex ones as real and imaginary parts along a first axis."""
        system = self.system()
        return System(*map(_parts, system)) if len(self.state_shape) == 3 else system

    def kernel(self, length: int) -> Tensor:
        """The answers to an input of 1 at the first token: Re(C A^i B), (G, M, length)."""
        return response(self.system(), length)

    def convolve(self, x: Tensor, kernel: Tensor | None = None) -> Tensor:
        """What `forward` returns for x (B, T, dim), by a convolution with the whole kernel instead of the scan.

        kernel: what `kernel(T)` returns, where a method finds it in a way of its own; None is `kernel(T)`.
        """
        u = self.project(x)
        kernel = self.kernel(max(1, x.size(1))) if kernel is None else kernel
        answers = kernel.size(1)
        y, _ = ops.long_conv(u.repeat_interleave(answers, 2), kernel.flatten(0, 1))
        return self.readout(x, u, y.unflatten(2, (-1, answers)))


def response(system: System, length: int) -> Tensor:
    """The answers to an input of 1 at the first token: Re(C A^i B), (G, M, length)."""
    A, B, C = system
    impulse = torch.zeros(1, length, B.size(0), dtype=B.real.dtype, device=B.device)
    impulse[:, :1] = 1.0
    return ops.invariant_scan(impulse, A, B, C)[0].squeeze(0).movedim(0, 2)


def read_system(
    system: System, u: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The answers (B, T, G, M) of systems driven by u (B, T, G), and the state after the segment.

    A complex state is (B, G, N, 2), real and imaginary parts.
    """
    parts = state.dim() == 4
    # Copied, not viewed: the memory of a loaded state need not be aligned for complex numbers.
    start = torch.complex(*state.unbind(-1)) if parts else state
    y, end = ops.invariant_scan(u, *system, state=start, reset=reset, lengths=lengths)
    return y, torch.view_as_real(end) if parts else end


def _read_token(system: System, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The same for one token, u (B, 1, G), in real numbers, of which programs of single steps are made."""
    A, B, C = system
    token = u.transpose(1, 2).to(state.dtype)
    if state.dim() == 4:
        x, y = state.unbind(3)
        x, y = A[0] * x - A[1] * y + B[0] * token, A[0] * y + A[1] * x + B[1] * token
        answers, state = C[0] * x.unsqueeze(2) - C[1] * y.unsqueeze(2), torch.stack([x, y], 3)
    else:
        faded = A * state if A.dim() == 2 else (state.transpose(0, 1) @ A.mT).transpose(0, 1)
        state = faded + B * token
        answers = C * state.unsqueeze(2)
    return answers.sum(3).unsqueeze(1).to(u.dtype), state


def _parts(z: Tensor) -> Tensor:
    return torch.stack([z.real, z.imag]) if z.is_complex() else torch.stack([z, torch.zeros_like(z)])
