"""The family of diagonal linear systems that read and answer all features at once, the same at every token."""

from abc import abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.derived import Derived
from seriatim.core.mixer import Mixer
from seriatim.ops.precision import full_precision

__all__ = ["MIMOMixer", "MIMOSystem"]


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

    def __init__(self) -> None:
        super().__init__()
        self.kept = Derived(_real)

    @abstractmethod
    def system(self) -> MIMOSystem:
        """The system in discrete time, complex64 or complex128."""

    @abstractmethod
    def readout(self, y: Tensor) -> Tensor:
        """The output (B, T, dim) from the answers y (B, T, dim)."""

    def init_state(self, batch: int) -> Tensor:
        return self.new_state(batch, self.states, 2)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        if x.size(1) == 1 and reset is None and lengths is None and not torch.is_grad_enabled():
            return self._read_token(x, state)
        self.kept.forget()
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

    def _read_token(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """The same for one token in real numbers, of which programs of single steps are made."""
        A, inputs, answers = self.kept(self.system)
        drive = F.linear(x.squeeze(1).to(inputs.dtype), inputs)
        real, imaginary = state.unbind(2)
        turned = torch.stack([A[0] * real - A[1] * imaginary, A[0] * imaginary + A[1] * real], 2)
        h = turned.flatten(1) + drive
        y = F.linear(h, answers).unsqueeze(1)
        return self.readout(torch.addcmul(y.to(x.dtype), self.D, x)), h.view(state.shape)

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


def _real(system: MIMOSystem) -> tuple[Tensor, Tensor, Tensor]:
    """A (2, N); B (2 N, dim), a real and an imaginary part by turns; C (dim, 2 N), so that it reads the real part."""
    A, B, C = system
    inputs = torch.view_as_real(B).movedim(2, 1).flatten(0, 1)
    return torch.view_as_real(A).T, inputs, torch.view_as_real(C.conj_physical()).flatten(1)
