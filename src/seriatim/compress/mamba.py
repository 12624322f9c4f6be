"""Mamba with quantised weights and activations."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.compress.layers import QuantizedConv, QuantizedLinear, Quantizer, quantizer
from seriatim.compress.rounding import SMALLEST
from seriatim.compress.schemes import Scheme
from seriatim.core import ragged
from seriatim.core.errors import SeriatimError
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.mixers.state_space.base import SelectiveState
from seriatim.mixers.state_space.mamba import Mamba
from seriatim.nn.pointwise import gated, silu

__all__ = ["QuantizedMamba"]


class QuantizedMamba(Mixer):
    r"""Mamba of which the matrices and the convolution are quantised.

    Where the scheme has activations of 8 bits, so is all that stands between two operators. The scale of u, which
    enters the system, is a percentile of its magnitudes; the others are of the largest. The gated output is multiplied
    by a Hadamard matrix before it is rounded.

    W_Delta has 8 bits in every scheme, as have the logarithms of A, with a scale for each of the N state values. The
    system's state, D, the biases and the norms stay as they are.

    Args:
        like: a mixer of the same sizes with one head; its numbers are not used.
        scheme: the bits.

    Source: Chiang et al., 2025, arXiv:2503.22879, section 4; the percentile and the Hadamard matrix, Chiang et al.,
        2024, arXiv:2410.13229.
    """

    A_log: Tensor
    A_scale: Tensor

    def __init__(self, like: Mamba, scheme: Scheme):
        super().__init__()
        if like.heads != 1:
            raise SeriatimError(f"heads is {like.heads}; it must be 1 for mamba to be quantised")
        self.dim, self.inner, self.state_size, self.rank = like.dim, like.inner, like.state_size, like.rank
        self.eigenvalues = like.eigenvalues
        self.parts = [self.rank, self.state_size, self.state_size]
        self.in_proj = QuantizedLinear(self.dim, 2 * self.inner, scheme)
        self.conv_in, self.gate = quantizer(scheme), quantizer(scheme)
        self.conv = QuantizedConv(self.inner, like.conv.size, like.conv.bias is not None)
        self.conv_out = quantizer(scheme, percentile=True)
        self.x_proj = QuantizedLinear(self.inner, sum(self.parts), scheme)
        self.ports = quantizer(scheme, sum(self.parts))
        self.norms = copy.deepcopy(like.norms)
        self.dt_proj = QuantizedLinear(self.rank, self.inner, Scheme(8, scheme.activations), bias=True)
        self.step_in = quantizer(scheme)
        self.register_buffer("A_log", torch.zeros(self.inner, self.state_size, dtype=torch.int8))
        self.register_buffer("A_scale", torch.ones(self.state_size))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = QuantizedLinear(self.inner, self.dim, scheme, rotated=True)

    def init_state(self, batch: int) -> SelectiveState:
        tail = self.new_state(batch, self.conv.size - 1, self.inner)
        return SelectiveState(tail, self.new_state(batch, self.inner, self.state_size))

    def mix(
        self, x: Tensor, state: SelectiveState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, SelectiveState]:
        u, gate = self.in_proj(x).chunk(2, -1)
        u, tail = self.conv(self.conv_in(u), state.tail, reset, lengths)
        u = self.conv_out(silu(u))
        parts = self.ports(self.x_proj(u)).split(self.parts, -1)
        if len(self.norms):
            parts = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        delta = self.step_in(self.dt_proj(parts[0]))
        delta = F.softplus(delta.to(state_dtype(delta.dtype)))
        if lengths is not None:  # a step of length 0 changes nothing
            delta = ragged.mask(delta, ragged.real_tokens(lengths, x.size(1)))
        A, signed = -torch.exp(self.A_log.to(delta.dtype) * self.A_scale), self.eigenvalues == "signed"
        y, system = ops.selective_scan(
            u, delta, A, parts[1], parts[2], self.D, state=state.system, reset=reset, signed=signed
        )
        return self.out_proj(gated(y, self.gate(gate))), SelectiveState(tail, system)

    def open(self, mixer: Mamba) -> None:
        """Takes the weights of a trained mixer and begins to observe."""
        self.in_proj.open(mixer.in_proj.weight)
        self.x_proj.open(mixer.x_proj.weight)
        self.dt_proj.open(mixer.dt_proj.weight, mixer.dt_proj.bias)
        self.out_proj.open(mixer.out_proj.weight)
        self.conv.fill(mixer.conv.weight, mixer.conv.bias)
        self.norms.load_state_dict(mixer.norms.state_dict())
        self.D.copy_(mixer.D)
        self.A_scale.copy_((mixer.A_log.abs().amax(0) / 127).clamp(min=SMALLEST))
        self.A_log.copy_((mixer.A_log / self.A_scale).round())
        for part in self._quantizers():
            part.open()

    def close(self) -> None:
        """Rounds the weights and settles the scales."""
        for linear in (self.in_proj, self.x_proj, self.dt_proj, self.out_proj):
            linear.close()
        groups = torch.arange(3).repeat_interleave(torch.tensor(self.parts))
        for part in self._quantizers():
            part.close(groups if part is self.ports else None)

    def _quantizers(self) -> list[Quantizer]:
        return [part for part in self.children() if isinstance(part, Quantizer)]
