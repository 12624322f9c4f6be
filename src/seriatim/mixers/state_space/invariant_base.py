"""The family of linear time-invariant state spaces: a system for each feature, the same at every token."""

from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim import ops
from seriatim.core.derived import Derived
from seriatim.core.mixer import Mixer

__all__ = ["InvariantMixer", "System", "read_system", "real_system", "response"]


class System(NamedTuple):
    """G linear systems in discrete time: h_t = A h_{t-1} + B u_t, y_t = Re(C h_t)."""

    A: Tensor  # (G, N), a diagonal, or (G, N, N), real
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

    def __init__(self) -> None:
        super().__init__()
        self.kept = Derived(real_system)

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
        y, state = read_system(self.kept, self.system, u, state, reset, lengths)
        return self.readout(x, u, y), state

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
    kept: Derived[System],
    system: Callable[[], System],
    u: Tensor,
    state: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The answers (B, T, G, M) of systems driven by u (B, T, G), and the state after the segment.

    `system` is a method of the mixer, whose answer is kept in `kept`, a `Derived(real_system)`, while the mixer writes
    token after token. A complex state is (B, G, N, 2), real and imaginary parts.
    """
    if u.size(1) == 1 and reset is None and lengths is None and not torch.is_grad_enabled():
        return _read_token(kept(system), u, state)
    kept.forget()
    parts = state.dim() == 4
    # Copied, not viewed: the memory of a loaded state need not be aligned for complex numbers.
    start = torch.complex(*state.unbind(-1)) if parts else state
    y, end = ops.invariant_scan(u, *system(), state=start, reset=reset, lengths=lengths)
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


def real_system(system: System) -> System:
    """Complex systems as real and imaginary parts along a first axis."""
    if not any(z.is_complex() for z in system):
        return system
    return System(*(torch.stack([z.real, z.imag if z.is_complex() else torch.zeros_like(z)]) for z in system))
