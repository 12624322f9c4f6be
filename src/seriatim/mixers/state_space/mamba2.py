"""Mamba-2."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError, check_divisible, check_number, check_positive, check_size
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer
from seriatim.mixers.state_space.base import DualInputs, DualState, dual_scan
from seriatim.nn.decay import HeadDecay
from seriatim.nn.norms import GatedRMSNorm
from seriatim.nn.pointwise import silu
from seriatim.nn.short_conv import ShortConv

__all__ = ["Mamba2"]


class Mamba2(Mixer):
    r"""Mamba-2: a selective state space whose A is one number a head, so that it is linear attention with decay.

    .. math:: (z, u') = W_{in} x_t, \quad (u, B, C) = \mathrm{silu}(\mathrm{conv}(u')), \quad
              \Delta = \mathrm{softplus}(W_\Delta x_t + b_\Delta)

    .. math:: h_t = e^{\Delta A} h_{t-1} + \Delta B u^\top, \quad o_t = h_t^\top C + D u, \quad
              y_t = W_{out}\, \mathrm{rms}(o_t \odot \mathrm{silu}(z))

    with A, D and Delta one number a head; B and C are shared by the heads of a group. A begins uniform between -16 and
    -1, the step sizes log-uniform between 0.001 and 0.1, D at 1.

    Args:
        dim: features in and out.
        state_size: N, width of B and C.
        expand: inner features, expand * dim.
        head_dim: P, inner features of a head; None is 64, or the largest power of 2 below that divides them.
        groups: of heads, each with a B and a C; heads must be a multiple.
        conv_size: taps of the short convolution.
        norm_groups: of inner features, each normalised by itself; None is `groups`.
        norm_before_gate: rms(o) * silu(z) instead of rms(o * silu(z)).
        step_min, step_max: limits of Delta; None is no limit.
        bias: whether W_in and W_out have biases.
        conv_bias: whether the convolution has one.

    Source: Dao and Gu, 2024, arXiv:2405.21060, sections 6 and 7; initialisation of its official code.
    """

    def __init__(
        self,
        dim: int,
        state_size: int = 128,
        expand: int = 2,
        head_dim: int | None = None,
        groups: int = 1,
        conv_size: int = 4,
        norm_groups: int | None = None,
        norm_before_gate: bool = False,
        step_min: float = 0.0,
        step_max: float | None = None,
        bias: bool = False,
        conv_bias: bool = True,
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size, expand=expand, conv_size=conv_size)
        inner = expand * dim
        self.width = head_dim if head_dim is not None else math.gcd(64, inner)
        check_divisible(inner=inner, head_dim=self.width)
        check_divisible(heads=inner // self.width, groups=groups)
        _check_steps(step_min, step_max)
        self.dim, self.state_size, self.expand, self.head_dim = dim, state_size, expand, head_dim
        self.groups, self.conv_size, self.norm_groups = groups, conv_size, norm_groups
        self.norm_before_gate, self.step_min, self.step_max = norm_before_gate, step_min, step_max
        self.bias, self.conv_bias = bias, conv_bias
        self.inner, self.heads, self.ports = inner, inner // self.width, groups * state_size
        channels = inner + 2 * self.ports
        self.in_proj = nn.Linear(dim, inner + channels, bias=bias)
        self.conv = ShortConv(channels, conv_size, bias=conv_bias)
        self.decay = HeadDecay(dim, self.heads, rates=(1.0, 16.0), step_min=step_min, step_max=step_max)
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(inner, groups if norm_groups is None else norm_groups, norm_before_gate)
        self.out_proj = nn.Linear(inner, dim, bias=bias)

    def init_state(self, batch: int) -> DualState:
        tail = self.new_state(batch, self.conv.size - 1, self.conv.dim)
        return DualState(tail, self.new_state(batch, self.heads, self.state_size, self.width))

    def mix(
        self, x: Tensor, state: DualState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, DualState]:
        inputs, gate, tail = self.project(x, state.tail, reset, lengths)
        y, system = self._scan(*inputs, state.system, reset)
        return self.readout(y, gate), DualState(tail, system)

    def project(
        self, x: Tensor, tail: Tensor, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[DualInputs, Tensor, Tensor]:
        """What enters the systems, the gate (B, T, E) and the convolution's last inputs. Padding has steps of 0."""
        gate, channels = self.in_proj(x).split([self.inner, self.conv.dim], -1)
        channels, tail = self.conv(channels, tail, reset, lengths)
        u, B, C = silu(channels).split([self.inner, self.ports, self.ports], -1)
        u = u.unflatten(-1, (self.heads, self.width))
        B, C = (port.unflatten(-1, (self.groups, self.state_size)) for port in (B, C))
        step = self.decay.steps(x)
        if lengths is not None:  # a step of length 0 changes nothing
            step = ragged.mask(step, ragged.real_tokens(lengths, x.size(1)))
        return DualInputs(u, step, B, C), gate, tail

    def skip(self, y: Tensor, u: Tensor) -> Tensor:
        """y + D u."""
        return torch.addcmul(y, u, self.D.to(u.dtype).unsqueeze(-1))

    def readout(self, y: Tensor, gate: Tensor) -> Tensor:
        """The output (B, T, dim) from that of the systems, y (B, T, H, P)."""
        return self.out_proj(self.norm(y.flatten(-2), gate))

    @linear_in("u")
    def _scan(
        self, u: Tensor, step: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y, state = dual_scan(u, step, self.decay.log_decay(step), B, C, state, reset)
        return self.skip(y, u), state


def _check_steps(step_min: float, step_max: float | None) -> None:
    check_number(step_min=step_min)
    if step_min < 0:
        raise SeriatimError(f"step_min is {step_min}; it must be at least 0")
    if step_max is not None:
        check_positive(step_max=step_max)
        if step_max < step_min:
            raise SeriatimError(f"step_max is {step_max} and step_min {step_min}; step_max must not be below it")


def reference(m: Mamba2, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, head and token at a time."""
    return reference_with(m, x, recurrence)


def recurrence(decays: Tensor, writes: Tensor) -> list[Tensor]:
    """A head's states from its decays (T,) and what is written, (T, N, P)."""
    h, states = torch.zeros_like(writes[0]), []
    for decay, write in zip(decays, writes, strict=True):
        h = decay * h + write
        states.append(h)
    return states


def reference_with(m: Mamba2, x: Tensor, states: Callable[[Tensor, Tensor], Sequence[Tensor]]) -> Tensor:
    """The same where a head's states come of its decays and of what is written in another way than `recurrence`."""
    in_bias, out_bias = m.in_proj.bias, m.out_proj.bias
    A, rows = -torch.exp(m.decay.A_log), []
    norms = m.norm.groups
    for sequence in x:
        gates, mixed, steps, out = [], [], [], []
        recent = [x.new_zeros(m.conv.dim) for _ in range(m.conv.size)]
        for token in sequence:
            projected = m.in_proj.weight @ token + (0 if in_bias is None else in_bias)
            gate, recent = projected[: m.inner], [*recent[1:], projected[m.inner :]]
            channels = (m.conv.weight * torch.stack(recent, 1)).sum(1)
            channels = channels if m.conv.bias is None else channels + m.conv.bias
            gates.append(gate)
            mixed.append(channels * torch.sigmoid(channels))
            step = torch.log1p(torch.exp(m.decay.step.weight @ token + m.decay.step_bias))
            steps.append(step.clamp(m.step_min, m.step_max))
        heads = []
        for head in range(m.heads):
            group = head * m.groups // m.heads
            u = [each[head * m.width : (head + 1) * m.width] for each in mixed]
            B = [each[m.inner + group * m.state_size :][: m.state_size] for each in mixed]
            C = [each[m.inner + m.ports + group * m.state_size :][: m.state_size] for each in mixed]
            delta = [step[head] for step in steps]
            decays = torch.stack([torch.exp(each * A[head]) for each in delta])
            writes = torch.stack([d * torch.outer(b, v) for d, b, v in zip(delta, B, u, strict=True)])
            heads.append([h.T @ c + m.D[head] * v for h, c, v in zip(states(decays, writes), C, u, strict=True)])
        for z, *o in zip(gates, *heads, strict=True):
            y, opening = torch.cat(o), z * torch.sigmoid(z)
            y = y if m.norm_before_gate else y * opening
            y = torch.cat([part / (part.square().mean() + 1e-5).sqrt() for part in y.chunk(norms)]) * m.norm.weight
            y = y * opening if m.norm_before_gate else y
            out.append(m.out_proj.weight @ y + (0 if out_bias is None else out_bias))
        rows.append(torch.stack(out))
    return torch.stack(rows)
