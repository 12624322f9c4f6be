"""The contract on frames: a film is a sequence of images, (B, T, channels, height, width)."""

import sys
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.build import Spec, build
from seriatim.core.errors import SeriatimError, check_size
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.core.state import State, check_state

__all__ = ["FlatFrames", "FrameMixer"]


class FrameMixer(nn.Module, ABC):
    """Maps (B, T, channels, height, width) to the same and carries a state from one segment of frames to the next.

    What :class:`seriatim.core.mixer.Mixer` is to features: resets, lengths, pieces and steps mean the same. A method
    is made of convolutions, so that frames may be of any size, and a state belongs to one size. `FlatFrames` makes a
    Mixer of it where that is known.
    """

    channels: int

    @abstractmethod
    def init_state(self, batch: int, height: int, width: int) -> State:
        """The state before anything was seen, for `batch` films."""

    @abstractmethod
    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """The method. Padded frames of x are 0 and resets in the padding are gone; the state must stop at lengths."""

    def forward(
        self, x: Tensor, state: State | None = None, *, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads frames and goes on from `state`.

        Args:
            x: (B, T, channels, height, width). T may be 0.
            state: what an earlier call returned; None is `init_state(B, height, width)`. It is not changed.
            reset: (B, T) bool, a new film begins at this frame.
            lengths: (B,) int, only the first lengths[b] frames are real; what the padding holds does not matter.

        Raises:
            SeriatimError: an argument has another shape or dtype than the above.
        """
        if x.dim() != 5 or x.size(2) != self.channels or not x.is_floating_point():
            raise SeriatimError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)} and dtype {x.dtype}; "
                f"it must be (batch, time, {self.channels}, height, width) floating"
            )
        batch, time, _, height, width = x.shape
        start = self.init_state(batch, height, width)
        if state is not None:
            check_state(type(self).__name__, state, start, batch)
        if reset is not None:
            ragged.check_reset(reset, batch, time)
        if lengths is not None:
            ragged.check_lengths(lengths, batch, time)
            real = ragged.real_tokens(lengths, time)
            x, reset = ragged.mask(x, real), None if reset is None else reset & real
        return self.mix(x, start if state is None else state, reset, lengths)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads one frame, x (B, channels, height, width)."""
        y, state = self.forward(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def rewind(self, before: State, x: Tensor, keep: Tensor) -> State:
        """The state after only the first keep[b] frames of x, read from the state `before`. keep (B,) int."""
        return self.forward(x, before, lengths=keep)[1]

    def new_state(self, batch: int, *shape: int) -> Tensor:
        """A (batch, *shape) leaf of zeros on the parameters' device, in the state's dtype."""
        parameter = next(self.parameters())
        return torch.zeros((batch, *shape), device=parameter.device, dtype=state_dtype(parameter.dtype))


class FlatFrames(Mixer):
    """A FrameMixer as a Mixer: a token is a frame, its features the numbers of channels, rows and columns in order.

    Args:
        inner: the spec of a FrameMixer, such as `{"mixer": "seriatim.vision.conv_s5:ConvS5", "channels": 8}`.
        height, width: of the frames.
    """

    def __init__(self, inner: Spec, height: int, width: int):
        super().__init__()
        check_size(height=height, width=width)
        self.inner, self.height, self.width = inner, height, width
        self.frames: Any = build(inner)
        if not isinstance(self.frames, FrameMixer):
            raise SeriatimError(f"inner is a {type(self.frames).__name__}; it must read frames (a FrameMixer)")
        self.dim = self.frames.channels * height * width

    def init_state(self, batch: int) -> State:
        return self.frames.init_state(batch, self.height, self.width)

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        frames = x.unflatten(2, (self.frames.channels, self.height, self.width))
        y, state = self.frames(frames, state, reset=reset, lengths=lengths)
        return y.flatten(2), state


def reference(m: FlatFrames, x: Tensor) -> Tensor:
    """That of the FrameMixer."""
    frames = x.unflatten(2, (m.frames.channels, m.height, m.width))
    return sys.modules[type(m.frames).__module__].reference(m.frames, frames).flatten(2)
