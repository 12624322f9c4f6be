"""ConvS5."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_divisible, check_one_of, check_positive, check_size
from seriatim.core.mixer import state_dtype
from seriatim.nn.discretization import discretize_diagonal, log_steps
from seriatim.nn.group_norm import EPSILON, GroupNorm
from seriatim.nn.hippo import normal_blocks
from seriatim.nn.truncated_normal import truncated_normal
from seriatim.ops.precision import full_precision
from seriatim.vision.conv_lstm import check_kernel, convolved
from seriatim.vision.frames import FrameMixer

__all__ = ["ConvS5"]

ACTIVATIONS = ("standard", "resnet")


class ConvS5(FrameMixer):
    r"""A convolutional state space whose frames are computed all at once: its state kernels are single pixels.

    .. math:: X' = \Lambda X + B * U, \quad Y_t = 2\,\mathrm{Re}(C * X_t)

    in frames that lie a step e^s apart, one for each state channel (zero-order hold). A state kernel of one pixel
    mixes channels only, and is diagonal here, so that composing two of them stays as cheap: a parallel scan goes over
    frames, where larger kernels would grow with every composition. B and C reach over a neighbourhood. Eigenvalues,
    B and C begin as in S5, the kernels of B and C He normal. What follows:

    - "standard": :math:`\mathrm{gelu}(\mathrm{GN}(Y + D * U + b))`
    - "resnet": :math:`\mathrm{gelu}(Y + R(R(Y)))` with :math:`R(Z) = E * \mathrm{gelu}(\mathrm{GN}(Z)) + b`

    GN is a group norm of each frame.

    Args:
        channels: of the frames in and out; a multiple of groups.
        state_size: real state channels; None is channels.
        blocks: parts of the first state matrix, each of an even size.
        input_kernel, output_kernel, direct_kernel: rows and columns of B, of C, and of D or E, odd.
        groups: of the group norms.
        activation: "standard" or "resnet".
        clip_eigenvalues: keep the real parts below 0, whatever is learned.
        step_min, step_max: bounds of the first steps.
        rate: steps between two frames, 1 as trained.

    Source: Smith et al., 2023, arXiv:2310.19694, sections 3.1 to 3.4; kernels, norms and initialisation of its official
        code.
    """

    def __init__(
        self,
        channels: int,
        state_size: int | None = None,
        blocks: int = 1,
        input_kernel: int = 3,
        output_kernel: int = 3,
        direct_kernel: int = 3,
        groups: int = 1,
        activation: str = "standard",
        clip_eigenvalues: bool = False,
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        size = channels if state_size is None else state_size
        check_kernel(input_kernel=input_kernel, output_kernel=output_kernel, direct_kernel=direct_kernel)
        check_size(channels=channels, state_size=size, blocks=blocks)
        check_divisible(channels=channels, groups=groups)
        check_one_of("activation", activation, ACTIVATIONS)
        check_positive(rate=rate)
        self.channels, self.state_size, self.blocks, self.groups = channels, state_size, blocks, groups
        self.input_kernel, self.output_kernel, self.direct_kernel = input_kernel, output_kernel, direct_kernel
        self.activation, self.clip_eigenvalues = activation, clip_eigenvalues
        self.step_min, self.step_max, self.rate = step_min, step_max, rate
        eigenvalues, vectors = normal_blocks(size, blocks)
        self.states = len(eigenvalues)
        self.log_step = nn.Parameter(log_steps(self.states, step_min, step_max))
        self.real = nn.Parameter(eigenvalues.real.float())
        self.imaginary = nn.Parameter(eigenvalues.imag.float())
        B = _he_normal(size, channels, input_kernel).to(vectors.dtype)
        C = _he_normal(channels, size, output_kernel).to(vectors.dtype)
        self.B = nn.Parameter(_parts(torch.einsum("np,ncij->pcij", vectors.conj(), B)))
        self.C = nn.Parameter(_parts(torch.einsum("cnij,np->cpij", C, vectors)))
        convolutions = 1 if activation == "standard" else 2
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, channels, direct_kernel, padding=direct_kernel // 2) for _ in range(convolutions)
        )
        self.norms = nn.ModuleList(GroupNorm(groups, channels) for _ in range(convolutions))

    def init_state(self, batch: int, height: int, width: int) -> Tensor:
        return self.new_state(batch, height, width, self.states, 2)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        A, B, C = self.system()
        start = torch.view_as_complex(state.contiguous())
        frames = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with full_precision(x.device):  # of real numbers, the two of a complex one beside each other in memory
            kernel = torch.view_as_real(B).movedim(-1, 1).flatten(0, 1)
            drive = F.conv2d(frames.to(kernel.dtype), kernel, padding=self.input_kernel // 2).movedim(1, -1)
            inputs = torch.view_as_complex(drive.contiguous().unflatten(-1, (-1, 2))).unflatten(0, x.shape[:2])
            h, end = ops.diagonal_scan(A.expand(inputs.shape[2:]), inputs, state=start, reset=reset)
            both = torch.view_as_real(h).flatten(-2).flatten(0, 1).movedim(-1, 1)
            kernel = 2 * torch.stack([C.real, -C.imag], 2).flatten(1, 2)
            y = F.conv2d(both, kernel, padding=self.output_kernel // 2)
        if lengths is not None:
            end = ragged.last(h, start, lengths)
        return self.readout(frames, y.to(x.dtype)).unflatten(0, x.shape[:2]), torch.view_as_real(end)

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """In discrete time, complex: A (P,), B (P, channels, K, K), C (channels, P, K, K)."""
        wide = state_dtype(self.B.dtype)
        real = self.real.to(wide)
        eigenvalues = torch.complex(real.clamp(max=-1e-4) if self.clip_eigenvalues else real, self.imaginary.to(wide))
        B, C = torch.view_as_complex(self.B.to(wide)), torch.view_as_complex(self.C.to(wide))
        step = self.log_step.to(wide).exp() * self.rate
        A, flat = discretize_diagonal(eigenvalues.unsqueeze(1), B.flatten(1), step, "zoh")
        return A.squeeze(1), flat.view(B.shape), C

    def readout(self, frames: Tensor, y: Tensor) -> Tensor:
        """What follows the system, frame by frame: frames and its answers y, (..., channels, height, width)."""
        if self.activation == "standard":
            return F.gelu(self.norms[0](y + self.convs[0](frames)))
        hidden = y
        for norm, conv in zip(self.norms, self.convs, strict=True):
            hidden = conv(F.gelu(norm(hidden)))
        return F.gelu(y + hidden)


def _he_normal(out: int, channels: int, kernel: int) -> Tensor:
    deviation = (2 / (channels * kernel**2)) ** 0.5
    return truncated_normal(out, channels, kernel, kernel, deviation=deviation, dtype=torch.float64)


def _parts(numbers: Tensor) -> Tensor:
    return torch.view_as_real(numbers.resolve_conj()).float()


def reference(m: ConvS5, x: Tensor) -> Tensor:
    """The paper's equations, one film, frame and pixel at a time; of pairs of eigenvalues both written out."""
    real = torch.minimum(m.real, torch.full_like(m.real, -1e-4)) if m.clip_eigenvalues else m.real
    eigenvalues, step = torch.complex(real, m.imaginary), m.log_step.exp() * m.rate
    B, C = torch.complex(*m.B.unbind(-1)), torch.complex(*m.C.unbind(-1))
    eigenvalues, step = torch.cat([eigenvalues, eigenvalues.conj()]), torch.cat([step, step])
    B, C = torch.cat([B, B.conj()]), torch.cat([C, C.conj()], 1)
    A = torch.exp(step * eigenvalues)
    B = ((A - 1) / eigenvalues)[:, None, None, None] * B
    films = []
    for film in x:
        h, out = torch.zeros(len(A), *film.shape[2:], dtype=A.dtype), []
        for frame in film:
            h = A[:, None, None] * h + convolved(B, frame)
            y = convolved(C, h).real
            if m.activation == "standard":
                out.append(_gelu(_group_norm(m, 0, y + _convolution(m, 0, frame))))
            else:
                hidden = _convolution(m, 0, _gelu(_group_norm(m, 0, y)))
                hidden = _convolution(m, 1, _gelu(_group_norm(m, 1, hidden)))
                out.append(_gelu(y + hidden))
        films.append(torch.stack(out))
    return torch.stack(films)


def _convolution(m: ConvS5, index: int, frame: Tensor) -> Tensor:
    weight, bias = m.convs[index].parameters()
    return convolved(weight, frame) + bias[:, None, None]


def _group_norm(m: ConvS5, index: int, frame: Tensor) -> Tensor:
    weight, bias = m.norms[index].parameters()
    groups = [(z - z.mean()) / torch.sqrt(z.var(correction=0) + EPSILON) for z in frame.chunk(m.groups)]
    return weight[:, None, None] * torch.cat(groups) + bias[:, None, None]


def _gelu(z: Tensor) -> Tensor:
    return z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
