"""Layers with quantised weights and activations.

A layer is made with its shapes; its numbers are loaded, or come about in two steps. `open` gives it the weights of a
trained layer, with which it computes while its observer sees what it reads; `close` rounds them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.compress.hadamard import Rotation
from seriatim.compress.observing import Observer
from seriatim.compress.rounding import SMALLEST, group_of, round_weight
from seriatim.compress.schemes import GROUP, Scheme
from seriatim.core.mixer import state_dtype
from seriatim.ops.quantized_linear import PAIRED, byte_linear, nibble_linear, unpack_nibbles

__all__ = ["QuantizedConv", "QuantizedEmbedding", "QuantizedLinear", "Quantizer", "quantizer"]


class Quantizer(nn.Module):
    """Numbers to the nearest of 255 multiples of a scale: one scale for all channels, or one for each.

    Args:
        size: scales.
        percentile: the scale is that of nearly all numbers, and the few beyond are cut; else of the largest.
    """

    scale: Tensor

    def __init__(self, size: int = 1, percentile: bool = False):
        super().__init__()
        self.percentile = percentile
        self.register_buffer("scale", torch.ones(size))
        self.observer: Observer | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) to the same."""
        if self.observer is not None:
            self.observer.see(x)
            return x
        return whole(x, self.scale) * self.scale

    def open(self) -> None:
        """Begins to observe."""
        self.observer = Observer(percentile=self.percentile)

    def close(self, groups: Tensor | None = None) -> None:
        """Settles the scales. groups: (channels,) the number of each channel's group; a group shares its largest."""
        seen, self.observer = self.observer, None
        assert seen is not None
        assert seen.largest is not None
        largest = seen.largest
        if groups is not None:
            tops = largest.new_zeros(int(groups.max()) + 1).scatter_reduce(0, groups, largest, "amax")
            largest = tops[groups]
        else:
            largest = (largest.amax() if seen.percentile is None else seen.percentile)[None]
        self.scale.copy_((largest / 127).clamp(min=SMALLEST))


def quantizer(scheme: Scheme, size: int = 1, percentile: bool = False) -> nn.Module:
    """A quantiser where the scheme has one for activations."""
    return Quantizer(size, percentile) if scheme.activations == 8 else nn.Identity()


def whole(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale rounded to whole numbers from -127 to 127."""
    return (x / scale + 0.5).floor().clamp(-127, 127)


class QuantizedLinear(nn.Module):
    """y = W x + b with W of 8 or 4 bits, and x of 8 bits where the scheme says so.

    Args:
        size, out: features in and out.
        scheme: the bits.
        bias: whether there is b, which stays as it is.
        rotated: x is multiplied by a Hadamard matrix before it is rounded, and W by its transpose.
    """

    weight: Tensor
    scale: Tensor
    input_scale: Tensor

    def __init__(self, size: int, out: int, scheme: Scheme, bias: bool = False, rotated: bool = False):
        super().__init__()
        self.in_features, self.out_features, self.scheme = size, out, scheme
        self.group = group_of(size, GROUP)
        self.rotation = Rotation(size) if rotated else None
        self.bias = nn.Parameter(torch.zeros(out), requires_grad=False) if bias else None
        if scheme.weights == 8:
            self.register_buffer("weight", torch.zeros(out, size, dtype=torch.int8))
            self.register_buffer("scale", torch.ones(out))
        else:
            self.register_buffer("weight", torch.zeros(out, -(-size // PAIRED) * PAIRED // 2, dtype=torch.int8))
            self.register_buffer("scale", torch.ones(out, -(-size // self.group), dtype=torch.bfloat16))
        if scheme.activations == 8:
            self.register_buffer("input_scale", torch.ones(1))
        self.source: Tensor | None = None
        self.observer: Observer | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) to (..., out)."""
        x = x if self.rotation is None else self.rotation(x)
        if self.source is not None and self.observer is not None:
            self.observer.see(x)
            y = F.linear(x, self.source)
        elif self.scheme.activations == 16:
            y = self._product(x, False)
        elif self.scheme.weights == 8:
            y = self._product(whole(x, self.input_scale), True)
        else:
            y = self._product(whole(x, self.input_scale), True) * self.input_scale
        return y if self.bias is None else y + self.bias

    def _product(self, x: Tensor, is_whole: bool) -> Tensor:
        if self.scheme.weights == 8:
            return byte_linear(x, self.weight, self.scale, is_whole)
        return nibble_linear(x, self.weight, self.scale, self.group, is_whole)

    def open(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Takes the weights of a trained layer and begins to observe."""
        weight = weight.detach().clone()
        self.source = weight if self.rotation is None else self.rotation(weight)
        self.observer = Observer(moments=self.scheme.weights == 4)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias.detach())

    def close(self) -> None:
        """Rounds the weights."""
        source, seen, self.source, self.observer = self.source, self.observer, None, None
        assert source is not None
        assert seen is not None
        assert seen.largest is not None
        found = round_weight(source, self.scheme.weights, self.group, seen.moments if seen.keeps_moments else None)
        self.weight.copy_(found.weight)
        self.scale.copy_(found.scale)
        if self.scheme.activations == 8:
            self.input_scale.copy_((seen.largest.amax() / 127).clamp(min=SMALLEST))
            if self.scheme.weights == 8:  # products of whole numbers are in units of both
                self.scale.mul_(self.input_scale)


class QuantizedEmbedding(nn.Module):
    """Rows of 8 or 4 bits, with a scale for each row."""

    weight: Tensor
    scale: Tensor

    def __init__(self, rows: int, dim: int, scheme: Scheme):
        super().__init__()
        self.dim, self.bits = dim, scheme.weights
        bytes_ = dim if self.bits == 8 else -(-dim // PAIRED) * PAIRED // 2
        self.register_buffer("weight", torch.zeros(rows, bytes_, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(rows, 1, dtype=torch.float32 if self.bits == 8 else torch.bfloat16))

    def forward(self, tokens: Tensor) -> Tensor:
        """(...) ids to (..., dim)."""
        rows, dtype = F.embedding(tokens, self.weight), state_dtype(self.scale.dtype)
        wide = rows.to(dtype) if self.bits == 8 else unpack_nibbles(rows, self.dim, dtype)
        return wide * F.embedding(tokens, self.scale).to(dtype)

    def fill(self, weight: Tensor) -> None:
        """Rounds the rows of a trained embedding."""
        found = round_weight(weight, self.bits, group_of(self.dim, self.dim + PAIRED))
        self.weight.copy_(found.weight)
        self.scale.copy_(found.scale.view(-1, 1))


class QuantizedConv(nn.Module):
    """A short causal convolution (:class:`seriatim.nn.short_conv.ShortConv`) with kernels of 8 bits."""

    weight: Tensor
    scale: Tensor

    def __init__(self, dim: int, size: int, bias: bool):
        super().__init__()
        self.dim, self.size = dim, size
        self.register_buffer("weight", torch.zeros(size, dim, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.bfloat16))
        self.bias = nn.Parameter(torch.zeros(dim), requires_grad=False) if bias else None

    def forward(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, T, dim) to the same shape, and the new tail."""
        weight = (self.weight.to(x.dtype) * self.scale.to(x.dtype)).mT
        return ops.short_conv(x, weight, self.bias, state=state, reset=reset, lengths=lengths)

    def fill(self, weight: Tensor, bias: Tensor | None) -> None:
        """Rounds the kernels of a trained convolution."""
        weight = weight.detach().mT
        scale = (weight.abs().amax(0) / 127).clamp(min=SMALLEST).bfloat16()
        self.scale.copy_(scale)
        self.weight.copy_((weight / scale.float()).round().clamp(-127, 127))
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias.detach())
