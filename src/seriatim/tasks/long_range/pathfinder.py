"""Pathfinder: are two points joined by a dashed curve?"""

import math
from collections.abc import Iterable
from itertools import product
from random import Random

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.long_range.base import Examples, SeriesTask

__all__ = ["Pathfinder"]

DASH, GAP = 3.0, 1.6  # pixels
BEND = math.pi / 8  # radians, the most that a curve turns from dash to dash
APART = 2.6  # pixels between curves, and between parts of one
MARGIN = 2.5  # pixels from the border
DOT = 1.6  # the points' radius
TRIES = 200  # at a curve, before the image is begun anew

Segment = tuple[float, float, float, float]


class Pathfinder(SeriesTask):
    """Pathfinder: two points in an image, read pixel by pixel; are they the ends of one dashed curve?

    Every image has two long curves of `dashes` dashes and `distractors` curves of a third of that. In half of the
    images the points are the ends of one long curve, in the others they are ends of different ones, those of the four
    pairs whose distance is nearest to that of one curve's ends: distance alone tells little. A pixel is a number from 0
    to 1. The level is the distance between the points in pixels.

    Args:
        size: pixels of a side; sequences have size * size elements.
        dashes: of a long curve.
        distractors: short curves.

    Source: Linsley et al., 2018, arXiv:1805.08315, section 2; 32 x 32 pixels as sequences: Tay et al., 2020,
        arXiv:2011.04006, section 2.2.5. Images are drawn by our own program.
    """

    difficulty = "distance"
    vocab_size = 2
    channels = 1

    def __init__(self, size: int = 32, dashes: int = 6, distractors: int = 4):
        check_size(size=size, dashes=dashes)
        if isinstance(distractors, bool) or not isinstance(distractors, int) or distractors < 0:
            raise SeriatimError(f"distractors is {distractors!r}; it must be a whole number, 0 or more")
        if dashes * (DASH + GAP) > 1.2 * size:
            raise SeriatimError(f"dashes is {dashes}; curves of so many do not fit into a size of {size}")
        self.size, self.dashes, self.distractors = size, dashes, distractors
        self.length = self.shortest = size * size

    def examples(self, batch: int, generator: torch.Generator | None) -> Examples:
        random = Random(int(torch.randint(2**62, (), generator=generator)))
        images, labels, levels = [], [], []
        for _ in range(batch):
            curves = self._curves(random)
            joined = random.random() < 0.5
            (a, b), (c, d) = ((curve[0][:2], curve[-1][2:]) for curve in curves[:2])
            usual = math.dist(a, b)
            ends = (a, b) if joined else min(product((a, b), (c, d)), key=lambda ends: abs(math.dist(*ends) - usual))
            images.append(self.draw([segment for curve in curves for segment in curve], ends))
            labels.append(int(joined))
            levels.append(round(math.dist(*ends)))
        lengths = torch.full((batch,), self.length)
        return Examples(torch.stack(images).view(batch, -1, 1), lengths, torch.tensor(labels), torch.tensor(levels))

    def draw(self, segments: list[Segment], dots: Iterable[tuple[float, float]]) -> Tensor:
        """The image (size, size) of line segments of a pixel's width, and of dots."""
        axis = torch.arange(self.size) + 0.5
        pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)  # x and y
        ends = torch.tensor(segments)[:, None, None]
        start, along = ends[..., :2], ends[..., 2:] - ends[..., :2]
        part = ((pixels - start) * along).sum(-1) / along.square().sum(-1)
        far = (pixels - start - part.clamp(0, 1)[..., None] * along).norm(dim=-1).amin(0)
        round_ones = (pixels - torch.tensor(list(dots))[:, None, None]).norm(dim=-1).amin(0) - DOT
        return torch.maximum(1.0 - far, 0.5 - round_ones).clamp(0, 1)

    def _curves(self, random: Random) -> list[list[Segment]]:
        """Two long ones first; none crosses another."""
        lengths = [self.dashes] * 2 + [max(1, self.dashes // 3)] * self.distractors
        while True:
            curves: list[list[Segment]] = []
            for dashes in lengths:
                taken = [place for curve in curves for segment in curve for place in _places(segment)]
                curve = next(filter(None, (self._curve(dashes, taken, random) for _ in range(TRIES))), None)
                if curve is None:
                    break
                curves.append(curve)
            else:
                return curves

    def _curve(self, dashes: int, taken: list[tuple[float, float]], random: Random) -> list[Segment] | None:
        """A curve from a random place, or None where it would leave the image or come near what is taken."""
        x, y = (random.uniform(MARGIN, self.size - MARGIN) for _ in range(2))
        angle, curve = random.uniform(-math.pi, math.pi), list[Segment]()
        for _ in range(dashes):
            segment = (x, y, x + DASH * math.cos(angle), y + DASH * math.sin(angle))
            own = [place for earlier in curve[:-1] for place in _places(earlier)]
            for place in _places(segment):
                if not all(MARGIN <= z <= self.size - MARGIN for z in place):
                    return None
                if any(math.dist(place, other) < APART for other in (*taken, *own)):
                    return None
            curve.append(segment)
            angle += random.uniform(-BEND, BEND)
            x, y = segment[2] + GAP * math.cos(angle), segment[3] + GAP * math.sin(angle)
        return curve


def _places(segment: Segment) -> list[tuple[float, float]]:
    """Its start, middle and end."""
    x, y, to_x, to_y = segment
    return [(x, y), ((x + to_x) / 2, (y + to_y) / 2), (to_x, to_y)]
