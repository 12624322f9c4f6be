"""A model of films: it sees frames and tells the next."""

import sys
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.build import Spec, build
from seriatim.core.errors import SeriatimError, check_size
from seriatim.core.state import State
from seriatim.nn.group_norm import EPSILON, GroupNorm
from seriatim.nn.truncated_normal import truncated_normal
from seriatim.vision.conv_lstm import convolved
from seriatim.vision.frames import FrameMixer

__all__ = ["FilmModel"]

BRANCH = 0.1  # of what a residual block adds


class FilmModel(FrameMixer):
    r"""Predicts the next frame: an encoder, mixers of frames one upon another, a decoder.

    .. math:: z \leftarrow \mathrm{LN}(z + \mathrm{mixer}_i(z)), \quad
              \hat x_{t+1} = \tfrac{1}{2} + \tfrac{1}{2} \tanh(\mathrm{decoder}(z_t))

    The encoder reads 2 x - 1 by a convolution and residual blocks, one for each of `depths`, with means of 2 x 2 pixels
    between them; the decoder goes back, and repeats pixels. A block is :math:`x + 0.1\, f(f(x))` with
    :math:`f(x) = W * \mathrm{elu}(\mathrm{GN}(x)) + b`, a linear map of x in its place where the channels differ. LN is
    a layer norm of each pixel's channels. Weights begin normal with a variance of one over the inputs.

    It obeys the contract on frames of numbers from 0 to 1, whose sides can be halved once less often than there are
    depths: `(frames (B, T, channels, height, width), state) -> (what comes after each, state)`.

    Args:
        channels: of the frames.
        dim: channels of the mixers.
        layers: a spec for each mixer of frames, such as `["seriatim.vision.conv_s5:ConvS5"] * 2`; each gets `channels`,
            which is dim.
        depths: channels of the encoder's blocks, from the whole frame down.
        groups: of the group norms of the blocks.

    Source: Smith et al., 2023, arXiv:2310.19694, section 4.1, ends and norms of its official code.
    """

    def __init__(
        self,
        channels: int = 1,
        dim: int = 32,
        layers: Sequence[Spec] = ("seriatim.vision.conv_s5:ConvS5", "seriatim.vision.conv_s5:ConvS5"),
        depths: Sequence[int] = (8, 16, 32),
        groups: int = 4,
    ):
        super().__init__()
        check_size(channels=channels, dim=dim)
        for name, given, wanted in (("layers", layers, "spec of a mixer of frames"), ("depths", depths, "number")):
            if isinstance(given, str) or not isinstance(given, Sequence) or not given:
                raise SeriatimError(f"{name} is {given!r}; it must be a list of at least one {wanted}")
        check_size(**{f"depths[{index}]": depth for index, depth in enumerate(depths)})
        self.channels, self.dim, self.groups = channels, dim, groups
        self.layers, self.depths = list(layers), list(depths)
        self.mixers = nn.ModuleList(build(layer, channels=dim) for layer in layers)
        for index, mixer in enumerate(self.mixers):
            if not isinstance(mixer, FrameMixer) or mixer.channels != dim:
                raise SeriatimError(f"layers[{index}] is {layers[index]!r}; it must read frames of dim channels")
        self.norms = nn.ModuleList(_ChannelNorm(dim) for _ in layers)
        first, last = depths[0], depths[-1]
        encoder: list[nn.Module] = [_convolution(channels, first, 3), _Block(first, first, groups)]
        for wide, deep in pairwise(depths):
            encoder += [nn.AvgPool2d(2), _Block(wide, deep, groups)]
        decoder: list[nn.Module] = [_convolution(dim, first, 3), _Block(first, last, groups)]
        for deep, wide in pairwise(reversed(depths)):
            decoder += [nn.Upsample(scale_factor=2), _Block(deep, wide, groups)]
        self.encoder = nn.Sequential(*encoder, _convolution(last, dim, 1))
        self.decoder = nn.Sequential(*decoder, _ChannelNorm(first), _convolution(first, channels, 1))

    def init_state(self, batch: int, height: int, width: int) -> State:
        parts = 2 ** (len(self.depths) - 1)
        if height % parts or width % parts or not height or not width:
            raise SeriatimError(f"frames have {height} x {width} pixels; the sides must be multiples of {parts}")
        return tuple(mixer.init_state(batch, height // parts, width // parts) for mixer in self._mixers())

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        frames = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        hidden, new = self.encoder(2 * frames - 1), []
        for mixer, norm, old in zip(self._mixers(), self.norms, state, strict=True):
            y, after = mixer(hidden.unflatten(0, x.shape[:2]), old, reset=reset, lengths=lengths)
            hidden = norm(hidden + y.flatten(0, 1))
            new.append(after)
        return (0.5 + 0.5 * torch.tanh(self.decoder(hidden))).unflatten(0, x.shape[:2]), tuple(new)

    def rollout(self, context: Tensor, frames: int) -> Tensor:
        """What comes after the context (B, T, channels, height, width), of which T is not 0: so many frames.

        Each is read again, by a step, to tell the next: (B, frames, channels, height, width).
        """
        check_size(frames=frames, **{"the context's time": context.size(1)})
        y, state = self.forward(context)
        found = [y[:, -1]]
        for _ in range(frames - 1):
            frame, state = self.step(found[-1], state)
            found.append(frame)
        return torch.stack(found, 1)

    def _mixers(self) -> list[Any]:
        return list(self.mixers)


class _Block(nn.Module):
    """x + 0.1 f(f(x)), f a convolution of elu of group norm."""

    def __init__(self, channels: int, out: int, groups: int):
        super().__init__()
        self.skip = nn.Identity() if channels == out else _convolution(channels, out, 1, bias=False)
        self.norms = nn.ModuleList([GroupNorm(groups, channels), GroupNorm(groups, out)])
        self.convs = nn.ModuleList([_convolution(channels, out, 3), _convolution(out, out, 3)])

    def forward(self, x: Tensor) -> Tensor:
        """x (frames, channels, height, width) to (frames, out, height, width)."""
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.elu(norm(y)))
        return self.skip(x) + BRANCH * y


class _ChannelNorm(nn.LayerNorm):
    """A layer norm of each pixel's channels."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """x (frames, channels, height, width) to the same."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def _convolution(channels: int, out: int, kernel: int, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=bias)
    with torch.no_grad():
        conv.weight.copy_(truncated_normal(*conv.weight.shape, deviation=(channels * kernel**2) ** -0.5))
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def reference(m: FilmModel, x: Tensor) -> Tensor:
    """Ends frame by frame, from the equations, and each mixer by its own reference."""
    films = []
    for film in x:
        z = torch.stack([_through(m.encoder, 2 * frame - 1) for frame in film])
        for mixer, norm in zip(m.mixers, m.norms, strict=True):
            y = sys.modules[type(mixer).__module__].reference(mixer, z.unsqueeze(0)).squeeze(0)
            z = torch.stack([_through([norm], frame) for frame in z + y])
        films.append(torch.stack([(1 + torch.tanh(_through(m.decoder, frame))) / 2 for frame in z]))
    return torch.stack(films)


def _through(layers: Iterable[Any], z: Tensor) -> Tensor:
    """z (channels, height, width) through one layer after another."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            z = convolved(layer.weight, z) + (0 if layer.bias is None else layer.bias[:, None, None])
        elif isinstance(layer, nn.AvgPool2d):
            z = (z[:, ::2, ::2] + z[:, ::2, 1::2] + z[:, 1::2, ::2] + z[:, 1::2, 1::2]) / 4
        elif isinstance(layer, nn.Upsample):
            z = torch.stack([z, z], 3).flatten(2)
            z = torch.stack([z, z], 2).flatten(1, 2)
        elif isinstance(layer, GroupNorm):
            parts = [(part - part.mean()) / (part.var(correction=0) + EPSILON).sqrt() for part in z.chunk(layer.groups)]
            z = layer.weight[:, None, None] * torch.cat(parts) + layer.bias[:, None, None]
        elif isinstance(layer, _ChannelNorm):
            z = (z - z.mean(0)) / (z.var(0, correction=0) + EPSILON).sqrt()
            z = layer.weight[:, None, None] * z + layer.bias[:, None, None]
        elif isinstance(layer, _Block):
            y = z
            for norm, conv in zip(layer.norms, layer.convs, strict=True):
                y = _through([norm], y)
                y = _through([conv], torch.where(y > 0, y, y.exp() - 1))
            z = _through([layer.skip], z) + 0.1 * y
    return z
