"""Hydra."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.errors import check_divisible, check_size
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.mixers.state_space.base import dual_scan
from seriatim.nn.centred_conv import CentredConv, flipped_reset
from seriatim.nn.decay import HeadDecay
from seriatim.nn.norms import GatedRMSNorm
from seriatim.nn.pointwise import silu

__all__ = ["Hydra"]


class Hydra(Mixer):
    r"""Hydra: each head multiplies its tokens by a quasiseparable matrix, in time linear in their number.

    .. math:: M_{ij} = \begin{cases}
              \overrightarrow{C}_{i-1}^\top \left(\prod_{j < k < i} \overrightarrow{\alpha}_k\right)
              \overrightarrow{\Delta}_j \overrightarrow{B}_j & i > j \\
              \delta_i & i = j \\
              \overleftarrow{C}_{i+1}^\top \left(\prod_{i < k < j} \overleftarrow{\alpha}_k\right)
              \overleftarrow{\Delta}_j \overleftarrow{B}_j & i < j
              \end{cases}

    .. math:: (z, u') = W_{in} x, \quad
              (u, \overrightarrow{B}, \overrightarrow{C}, \overleftarrow{B}, \overleftarrow{C})
              = \mathrm{silu}(\mathrm{conv}(u')), \quad \delta_i = w_\delta u_i + D, \quad
              y = W_{out} (\mathrm{rms}(M u) \odot \mathrm{silu}(z))

    with :math:`\alpha = e^{\Delta A}` and :math:`\Delta = \mathrm{softplus}(W_\Delta x + b_\Delta)` of Mamba-2, each
    direction with its own Delta, B and C, and both with the same A and b. A begins at -1, D at 1, the step sizes
    log-uniform between 0.001 and 0.1. The convolution sees both sides. Not causal: each token sees its whole document,
    in one pass through two scans that leave a place free between them for the diagonal.

    Args:
        dim: features in and out.
        state_size: N, width of B and C.
        expand: inner features, expand * dim.
        head_dim: P, inner features of a head; None is 64, or the largest power of 2 below that divides them.
        groups: of heads, each with its own B and C; heads must be a multiple.
        conv_size: taps of the convolution, an odd number.

    Source: Hwang et al., 2024, arXiv:2407.09941, sections 3 and 4; initialisation of its official code.
    """

    causal = False

    def __init__(
        self,
        dim: int,
        state_size: int = 64,
        expand: int = 2,
        head_dim: int | None = None,
        groups: int = 1,
        conv_size: int = 7,
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size, expand=expand)
        inner = expand * dim
        self.width = head_dim if head_dim is not None else math.gcd(64, inner)
        check_divisible(inner=inner, head_dim=self.width)
        check_divisible(heads=inner // self.width, groups=groups)
        self.dim, self.state_size, self.expand, self.head_dim = dim, state_size, expand, head_dim
        self.groups, self.conv_size = groups, conv_size
        self.inner, self.heads, self.ports = inner, inner // self.width, groups * state_size
        channels = inner + 4 * self.ports
        self.in_proj = nn.Linear(dim, inner + channels, bias=False)
        self.conv = CentredConv(channels, conv_size)
        self.decay = HeadDecay(dim, self.heads, directions=2, rates=(1.0, 1.0))
        self.diagonal = nn.Linear(inner, self.heads, bias=False)
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(inner, before_gate=True)
        self.out_proj = nn.Linear(inner, dim, bias=False)

    def init_state(self, batch: int) -> State:
        return ()

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        gate, channels = self.in_proj(x).split([self.inner, self.conv.dim], -1)
        u, ports = silu(self.conv(channels, reset)).split([self.inner, 4 * self.ports], -1)
        step = self.decay.steps(x)
        if lengths is not None:  # a step of length 0 writes nothing
            step = ragged.mask(step, ragged.real_tokens(lengths, x.size(1)))
        diagonal = F.linear(u, self.diagonal.weight, self.D)
        y = self._multiply(u.unflatten(-1, (self.heads, -1)), step, ports, diagonal, reset)
        return self.out_proj(self.norm(y.flatten(-2), gate)), ()

    @linear_in("u")
    def _multiply(self, u: Tensor, step: Tensor, ports: Tensor, diagonal: Tensor, reset: Tensor | None) -> Tensor:
        """The matrix times u (B, T, H, P). step (B, T, 2, H), ports (B, T, 4 G N), diagonal (B, T, H)."""
        past, future = ports.unflatten(-1, (2, 2, self.groups, self.state_size)).unbind(2)
        ends = None if reset is None else flipped_reset(reset)
        before = self._strictly_before(u, step[:, :, 0], past, reset)
        after = self._strictly_before(u.flip(1), step[:, :, 1].flip(1), future.flip(1), ends).flip(1)
        return torch.addcmul(before + after, u, diagonal.unsqueeze(-1))

    def _strictly_before(self, u: Tensor, step: Tensor, ports: Tensor, reset: Tensor | None) -> Tensor:
        """What the token before each one read; 0 for the first of a document."""
        B, C = ports.unbind(2)
        y, _ = dual_scan(u, step, self.decay.log_decay(step), B, C, None, reset)
        y = F.pad(y, (0, 0, 0, 0, 1, 0))[:, :-1]
        return y if reset is None else ragged.mask(y, ~reset)


def reference(m: Hydra, x: Tensor) -> Tensor:
    """The whole matrix of every head, entry by entry, times the head's tokens."""
    A, half, rows = -torch.exp(m.decay.A_log), m.conv.size // 2, []
    assert m.conv.bias is not None
    for sequence in x:
        time = len(sequence)
        z, channels = (sequence @ m.in_proj.weight.T).split([m.inner, m.conv.dim], -1)
        taps = [[(i, t + i - half) for i in range(m.conv.size) if 0 <= t + i - half < time] for t in range(time)]
        mixed = torch.stack([m.conv.bias + sum(m.conv.weight[:, i] * channels[s] for i, s in seen) for seen in taps])
        mixed = mixed * torch.sigmoid(mixed)
        u, *ports = mixed.split([m.inner] + 4 * [m.ports], -1)
        steps = torch.log1p(torch.exp(sequence @ m.decay.step.weight.T + m.decay.step_bias.repeat(2)))
        columns = []
        for h in range(m.heads):
            g, own = h * m.groups // m.heads, slice(h * m.width, (h + 1) * m.width)
            B, C, later_B, later_C = (port[:, g * m.state_size : (g + 1) * m.state_size] for port in ports)
            step, later = steps[:, h], steps[:, m.heads + h]
            M = x.new_zeros(time, time)
            for i in range(time):
                M[i, i] = m.diagonal.weight[h] @ u[i] + m.D[h]
                for j in range(i):
                    M[i, j] = torch.exp(A[h] * step[j + 1 : i].sum()) * step[j] * (C[i - 1] @ B[j])
                for j in range(i + 1, time):
                    M[i, j] = torch.exp(A[h] * later[i + 1 : j].sum()) * later[j] * (later_C[i + 1] @ later_B[j])
            columns.append(M @ u[:, own])
        y = torch.cat(columns, -1)
        y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * m.norm.weight * z * torch.sigmoid(z)
        rows.append(y @ m.out_proj.weight.T)
    return torch.stack(rows)
