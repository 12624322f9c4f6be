"""Images of an arrow and a circle: does the one point at the other?"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_size

__all__ = ["ArrowPointing", "Images"]

# In pixels, before anything is shrunk.
MARGIN = 30.0  # between the border and the centre of anything
RADIUS = (15.0, 30.0)
LENGTH = (10.0, 30.0)  # of the arrow
WIDTH = 2.0  # of its lines
REACH = 32  # of any figure from its centre
APART = 2.0  # radii, at least, between the centres along either axis
DISTINCT = 1.2  # an arrow that points meets the circle of 1/1.2 of the radius, another one misses that of 1.2 times it
HEAD = (0.4, 0.5)  # the head's lines: their length as a part of the arrow's, their angle to it in radians


class Images(NamedTuple):
    """A batch of black figures on white: whether the arrow points at the circle, and where things are.

    arrow: x and y of its middle in pixels from the upper left corner, its angle (0 is to the right, pi/2 is down), its
    length. circle: x and y of its centre, its radius.
    """

    images: Tensor  # (B, 3, size, size) float32, from 0 black to 1 white
    labels: Tensor  # (B,) int64, 1 where the arrow points at the circle
    arrow: Tensor  # (B, 4) float64
    circle: Tensor  # (B, 3) float64


class ArrowPointing:
    """Arrow pointing: long-range direction, and how a model of images goes on to larger images.

    Half of the arrows point at the circle. Figures are as large as in the paper whatever the image's size, so that a
    larger image asks for longer ways. The circle's place is uniform among those at least 2 radii away from the arrow
    along both axes. Longer arrows and misses by wider angles make an easier task.

    Args:
        size: pixels of a side: 192 to train and 384 to extrapolate in the paper; at least 180 / shrink.
        shrink: images are drawn that many times as large, and squares of pixels averaged: the same task, made small.
        length: the shortest and the longest arrow in pixels before shrinking; at most 60.
        miss: radians by which an arrow that does not point at the circle is turned away from its centre, at least; at
            most pi. 0 in the paper, where missing the circle is enough.

    Source: Pöppel et al., 2025, arXiv:2506.11997, section 5.1; sizes and angles of its official data set.
    """

    def __init__(self, size: int = 192, shrink: int = 1, length: tuple[float, float] = LENGTH, miss: float = 0.0):
        check_size(size=size, shrink=shrink)
        least = 2 * MARGIN + 2 * APART * RADIUS[1]
        if size * shrink < least:
            least = math.ceil(least / shrink)
            raise SeriatimError(f"size is {size}; where shrink is {shrink} it must be at least {least} for the figures")
        if not 0 < length[0] <= length[1] <= 2 * MARGIN:
            raise SeriatimError(
                f"length is {length}; it must be two numbers of pixels, rising, from 0 to {2 * MARGIN:g}"
            )
        if not 0 <= miss <= math.pi:
            raise SeriatimError(f"miss is {miss}; it must be an angle from 0 to pi")
        self.size, self.shrink, self.length, self.miss = size, shrink, length, miss

    def sample(self, batch: int, generator: torch.Generator | None = None) -> Images:
        """Images side by side. The generator alone decides which; None is torch's own."""
        check_size(batch=batch)
        side = self.size * self.shrink - 2 * MARGIN

        def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
            return low + (high - low) * torch.rand(batch, *shape, dtype=torch.float64, generator=generator)

        labels = (uniform() < 0.5).long()
        length, radius = uniform(low=self.length[0], high=self.length[1]), uniform(low=RADIUS[0], high=RADIUS[1])
        arrow = uniform(2) * side
        gap = APART * radius[:, None]
        circle = (arrow + gap + (side - 2 * gap) * uniform(2)) % side
        to_circle = circle - arrow
        distance = torch.where(labels == 1, radius / DISTINCT, radius * DISTINCT)
        half = torch.asin(distance / to_circle.norm(dim=1))
        least = half.clamp(min=self.miss)
        turned = torch.where(labels == 1, (2 * uniform() - 1) * half, least + 2 * (torch.pi - least) * uniform())
        angle = torch.atan2(to_circle[:, 1], to_circle[:, 0]) + turned
        places = [(arrow + MARGIN) / self.shrink, angle[:, None], length[:, None] / self.shrink]
        disc = torch.cat([circle + MARGIN, radius[:, None]], 1) / self.shrink
        return Images(self.draw(torch.cat(places, 1), disc), labels, torch.cat(places, 1), disc)

    def right(self, predictions: Tensor, found: Images) -> Tensor:
        """(B,) bool: where the predicted label (B,) is the true one."""
        return predictions == found.labels

    def draw(self, arrow: Tensor, circle: Tensor) -> Tensor:
        """Images (B, 3, size, size) of arrows (B, 4) and circles (B, 3), given as in `Images`, centred in the image."""
        arrow = torch.cat([arrow[:, :2] * self.shrink, arrow[:, 2:3], arrow[:, 3:] * self.shrink], 1)
        side = self.size * self.shrink + 2 * REACH  # all figures lie inside, wherever in the image their centres are
        canvas = torch.zeros(len(arrow), side, side, dtype=torch.bool)
        for place, black in ((arrow, _arrow), (circle * self.shrink, _disc)):
            corner = place[:, :2].floor().long()  # of the window around the figure, on the canvas
            window = corner[:, None] + torch.arange(2 * REACH)[:, None]  # (B, pixels of a side, 2)
            columns, rows = window[:, None, :, 0], window[:, :, None, 1]
            pixels = torch.stack(torch.broadcast_tensors(columns, rows), -1) + 0.5 - REACH
            canvas[torch.arange(len(arrow))[:, None, None], rows, columns] |= black(pixels, place)
        white = (~canvas[:, REACH:-REACH, REACH:-REACH]).float()
        return F.avg_pool2d(white[:, None], self.shrink).expand(-1, 3, -1, -1).contiguous()


def _disc(pixels: Tensor, circle: Tensor) -> Tensor:
    """Which pixels (B, rows, columns, 2) lie in the circle (B, 3)."""
    return (pixels - circle[:, None, None, :2]).norm(dim=-1) <= circle[:, None, None, 2]


def _arrow(pixels: Tensor, arrow: Tensor) -> Tensor:
    """Which pixels (B, rows, columns, 2) lie on the lines of the arrow (B, 4): its shaft and the two of its head."""
    middle, angle, length = arrow[:, :2], arrow[:, 2], arrow[:, 3, None]
    tip = middle + length / 2 * _towards(angle)
    ends = [tip - HEAD[0] * length * _towards(angle + turn) for turn in (-HEAD[1], HEAD[1])]
    far = [_far(pixels, tip, end) for end in (middle - length / 2 * _towards(angle), *ends)]
    return torch.stack(far).amin(0) <= WIDTH / 2


def _towards(angle: Tensor) -> Tensor:
    """(B,) to the unit vectors (B, 2)."""
    return torch.stack([angle.cos(), angle.sin()], -1)


def _far(pixels: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The distances (B, rows, columns) of pixels to the lines from a to b (B, 2)."""
    a, along = a[:, None, None], (b - a)[:, None, None]
    part = ((pixels - a) * along).sum(-1) / along.square().sum(-1)
    return (pixels - a - part.clamp(0, 1)[..., None] * along).norm(dim=-1)
