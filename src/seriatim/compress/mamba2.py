"""Mamba-2 with quantised weights and activations."""

import torch
from torch import Tensor, nn

from seriatim.compress.layers import QuantizedConv, QuantizedLinear, Quantizer, quantizer
from seriatim.compress.schemes import Scheme
from seriatim.core import ragged
from seriatim.core.mixer import Mixer
from seriatim.mixers.state_space.base import DualState, dual_scan
from seriatim.mixers.state_space.mamba2 import Mamba2
from seriatim.nn.decay import HeadDecay
from seriatim.nn.norms import GatedRMSNorm
from seriatim.nn.pointwise import silu

__all__ = ["QuantizedMamba2"]


class QuantizedMamba2(Mixer):
    r"""Mamba-2 of which W_in, the convolution and W_out are quantised.

    Where the scheme has activations of 8 bits, so is all that stands between two operators: z and Delta with one scale
    each, what enters the convolution with one for each of u, B and C, and what leaves it with one for each cluster of
    u's channels and for the B and the C of each group of heads. y is multiplied by a Hadamard matrix before it is
    rounded.

    The system's state, A, D, the biases and the norm stay as they are. One product makes z, u, B, C and Delta.

    Args:
        like: a mixer of the same sizes; its numbers are not used.
        scheme: the bits.

    Source: Chiang et al., 2025, arXiv:2503.22879, section 4.
    """

    def __init__(self, like: Mamba2, scheme: Scheme):
        super().__init__()
        self.dim, self.inner, self.heads, self.width = like.dim, like.inner, like.heads, like.width
        self.groups, self.state_size, self.ports = like.groups, like.state_size, like.ports
        self.step_min, self.step_max = like.step_min, like.step_max
        channels, decay = like.conv.dim, like.decay
        self.parts = [self.inner, channels, self.heads]
        self.in_proj = QuantizedLinear(self.dim, sum(self.parts), scheme, bias=like.in_proj.bias is not None)
        self.gate, self.step_in = quantizer(scheme), quantizer(scheme)
        self.conv_in, self.conv_out = quantizer(scheme, channels), quantizer(scheme, channels)
        self.conv = QuantizedConv(channels, like.conv.size, like.conv.bias is not None)
        self.decay = HeadDecay(self.dim, self.heads, step_min=decay.step_min, step_max=decay.step_max)
        self.decay.add_module("step", nn.Identity())  # in_proj makes the steps too
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.inner, like.norm.groups, like.norm.before_gate)
        self.out_proj = QuantizedLinear(self.inner, self.dim, scheme, bias=like.out_proj.bias is not None, rotated=True)

    def init_state(self, batch: int) -> DualState:
        tail = self.new_state(batch, self.conv.size - 1, self.conv.dim)
        return DualState(tail, self.new_state(batch, self.heads, self.state_size, self.width))

    def mix(
        self, x: Tensor, state: DualState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, DualState]:
        gate, channels, step = self.in_proj(x).split(self.parts, -1)
        channels, tail = self.conv(self.conv_in(channels), state.tail, reset, lengths)
        u, B, C = self.conv_out(silu(channels)).split([self.inner, self.ports, self.ports], -1)
        u = u.unflatten(-1, (self.heads, self.width))
        B, C = (port.unflatten(-1, (self.groups, self.state_size)) for port in (B, C))
        step = self.decay.steps(self.step_in(step))
        if lengths is not None:  # a step of length 0 changes nothing
            step = ragged.mask(step, ragged.real_tokens(lengths, x.size(1)))
        y, system = dual_scan(u, step, self.decay.log_decay(step), B, C, state.system, reset)
        y = torch.addcmul(y, u, self.D.unsqueeze(-1))
        return self.out_proj(self.norm(y.flatten(-2), self.gate(gate))), DualState(tail, system)

    def open(self, mixer: Mamba2) -> None:
        """Takes the weights of a trained mixer and begins to observe."""
        bias: Tensor | None = mixer.in_proj.bias
        if bias is not None:
            bias = torch.cat([bias, bias.new_zeros(self.heads)])
        self.in_proj.open(torch.cat([mixer.in_proj.weight, mixer.decay.step.weight]), bias)
        self.out_proj.open(mixer.out_proj.weight, mixer.out_proj.bias)
        self.conv.fill(mixer.conv.weight, mixer.conv.bias)
        copies: list[tuple[Tensor, Tensor]] = [
            (self.decay.step_bias, mixer.decay.step_bias),
            (self.decay.A_log, mixer.decay.A_log),
            (self.D, mixer.D),
            (self.norm.weight, mixer.norm.weight),
        ]
        for own, other in copies:
            own.copy_(other)
        for part in self._quantizers():
            part.open()

    def close(self, clusters: Tensor) -> None:
        """Rounds the weights and settles the scales. clusters: (inner,) the number of each channel's cluster."""
        self.in_proj.close()
        self.out_proj.close()
        sizes = torch.tensor([self.inner, self.ports, self.ports])
        ports = torch.arange(2 * self.groups).repeat_interleave(self.state_size)
        groups = {
            self.conv_in: torch.arange(3).repeat_interleave(sizes),
            self.conv_out: torch.cat([clusters, clusters.max() + 1 + ports]),
        }
        for part in self._quantizers():
            part.close(groups.get(part))

    def _quantizers(self) -> list[Quantizer]:
        return [part for part in self.children() if isinstance(part, Quantizer)]
