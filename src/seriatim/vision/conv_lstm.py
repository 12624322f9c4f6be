"""ConvLSTM."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_size
from seriatim.vision.frames import FrameMixer

__all__ = ["ConvLSTM"]


class ConvLSTMState(NamedTuple):
    """What is carried from segment to segment."""

    cell: Tensor  # (B, channels, height, width)
    hidden: Tensor  # (B, channels, height, width)


class ConvLSTM(FrameMixer):
    r"""An LSTM whose products with matrices are convolutions: frame after frame, since h stands inside the gates.

    .. math:: i, f, o = \sigma(W_{i,f,o} * x_t + U_{i,f,o} * h_{t-1} + b_{i,f,o}), \quad
              g = \tanh(W_g * x_t + U_g * h_{t-1} + b_g)

    .. math:: c_t = f \odot c_{t-1} + i \odot g, \quad h_t = o \odot \tanh(c_t)

    Without the paper's peepholes, which fix the size of the frames; so the comparison of ConvS5 has it. Weights begin
    He normal, biases 0.

    Args:
        channels: of the frames in and out, and of the state.
        kernel: rows and columns of a convolution, odd.

    Source: Shi et al., 2015, arXiv:1506.04214, section 3.1; Smith et al., 2023, arXiv:2310.19694, its code.
    """

    def __init__(self, channels: int, kernel: int = 3):
        super().__init__()
        check_kernel(kernel=kernel)
        check_size(channels=channels)
        self.channels, self.kernel = channels, kernel
        deviation = (2 / (2 * channels * kernel**2)) ** 0.5
        shape = (4 * channels, channels, kernel, kernel)
        self.input = nn.Parameter(torch.randn(shape) * deviation)
        self.recurrent = nn.Parameter(torch.randn(shape) * deviation)
        self.bias = nn.Parameter(torch.zeros(4 * channels))

    def init_state(self, batch: int, height: int, width: int) -> ConvLSTMState:
        shape = (batch, self.channels, height, width)
        return ConvLSTMState(self.new_state(*shape), self.new_state(*shape))

    def mix(
        self, x: Tensor, state: ConvLSTMState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, ConvLSTMState]:
        pad, (cell, hidden) = self.kernel // 2, state
        drive = F.conv2d(x.flatten(0, 1), self.input, self.bias, padding=pad).unflatten(0, x.shape[:2])
        out = []
        for t, current in enumerate(drive.unbind(1)):
            if reset is not None:
                cell, hidden = (z.masked_fill(reset[:, t, None, None, None], 0.0) for z in (cell, hidden))
            gates = current + F.conv2d(hidden.to(x.dtype), self.recurrent, padding=pad)
            i, f, o, g = gates.to(cell.dtype).chunk(4, 1)
            c = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            out.append(h)
            if lengths is not None:
                real = (t < lengths)[:, None, None, None]
                c, h = torch.where(real, c, cell), torch.where(real, h, hidden)
            cell, hidden = c, h
        return (torch.stack(out, 1).to(x.dtype) if out else x), ConvLSTMState(cell, hidden)


def check_kernel(**sizes: int) -> None:
    """Raises unless every named size of a kernel is odd, so that it has a middle."""
    check_size(**sizes)
    for name, size in sizes.items():
        if size % 2 == 0:
            raise SeriatimError(f"{name} is {size}; it must be odd: a kernel has a middle")


def reference(m: ConvLSTM, x: Tensor) -> Tensor:
    """The paper's equations, one film, frame, and pixel at a time."""
    films = []
    for film in x:
        shape = film.shape[1:]
        c, h, out = x.new_zeros(shape), x.new_zeros(shape), []
        for frame in film:
            gates = convolved(m.input, frame) + convolved(m.recurrent, h) + m.bias[:, None, None]
            i, f, o, g = gates.split(m.channels)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            out.append(h)
        films.append(torch.stack(out))
    return torch.stack(films)


def convolved(kernel: Tensor, frame: Tensor) -> Tensor:
    """The frame (channels, height, width), with zeros around it, under the kernel (out, channels, K, K), by pixels."""
    (_, height, width), size = frame.shape, kernel.size(2)
    padded = F.pad(frame, [size // 2] * 4)
    rows = []
    for r in range(height):
        seen = [padded[:, r : r + size, c : c + size] for c in range(width)]
        rows.append(torch.stack([torch.einsum("ocij,cij->o", kernel, patch.to(kernel.dtype)) for patch in seen], 1))
    return torch.stack(rows, 1)
