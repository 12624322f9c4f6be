import math

import pytest
import torch

from seriatim.core.errors import SeriatimError
from seriatim.tasks.arrow_pointing import ArrowPointing

KINDS = [(192, 1), (384, 1), (48, 4)]


def sample(size, shrink, batch=200, seed=0):
    return ArrowPointing(size, shrink).sample(batch, torch.Generator().manual_seed(seed))


def misses_by(arrow, circle):
    """How far the arrow's ray passes the centre, in radii; infinite where that lies behind it."""
    x, y, angle, _ = arrow
    dx, dy = circle[0] - x, circle[1] - y
    ahead = dx * math.cos(angle) + dy * math.sin(angle)
    return abs(dx * math.sin(angle) - dy * math.cos(angle)) / circle[2] if ahead > 0 else math.inf


@pytest.mark.parametrize(("size", "shrink"), KINDS)
def test_the_label_is_whether_the_ray_meets_the_circle(size, shrink):
    """With room to both sides: no ray passes between 1/1.2 and 1.2 radii."""
    found = sample(size, shrink)
    for label, arrow, circle in zip(found.labels.tolist(), found.arrow.tolist(), found.circle.tolist(), strict=True):
        assert (misses_by(arrow, circle) <= 1 / 1.2 + 1e-9) if label else (misses_by(arrow, circle) >= 1.2 - 1e-9)


@pytest.mark.parametrize(("size", "shrink"), KINDS)
def test_the_picture_tells_the_label(size, shrink):
    """Walking on from the arrow's tip one meets black exactly where the label says so."""
    found = sample(size, shrink)
    for image, label, arrow in zip(found.images, found.labels.tolist(), found.arrow.tolist(), strict=True):
        x, y, angle, length = arrow
        start = length / 2 + 2.5 if shrink == 1 else length / 2 + 1.5
        walk = torch.arange(start, 2 * size, 0.5, dtype=torch.float64)
        columns, rows = (x + walk * math.cos(angle)).floor().long(), (y + walk * math.sin(angle)).floor().long()
        inside = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size)
        assert bool((image[0, rows[inside], columns[inside]] == 0).any()) == bool(label)


@pytest.mark.parametrize(("size", "shrink"), KINDS)
def test_figures_have_their_sizes_and_places(size, shrink):
    found = sample(size, shrink)
    (x, y, _, length), (cx, cy, radius) = found.arrow.T, found.circle.T
    assert found.images.shape == (200, 3, size, size)
    shades = found.images[:, 0] * shrink**2
    assert torch.equal(shades, shades.round())
    assert (shades.min(), shades.max()) == (0, shrink**2)
    assert torch.equal(found.images[:, 0], found.images[:, 2])
    for place in (x, y, cx, cy):
        assert (30 / shrink <= place.min()) & (place.max() <= size - 30 / shrink)
        assert place.max() - place.min() > 0.9 * (size - 60 / shrink)
    assert ((x - cx).abs() >= 2 * radius - 1e-9).all()
    assert ((y - cy).abs() >= 2 * radius - 1e-9).all()
    assert (15 / shrink <= radius.min()) & (radius.max() <= 30 / shrink)
    assert (10 / shrink <= length.min()) & (length.max() <= 30 / shrink)
    black = (1 - found.images[:, 0]).sum((1, 2))
    disc = torch.pi * radius.square()
    assert (black > 0.9 * disc).all()
    assert (black < 1.1 * disc + 2.2 * 2.2 * length / shrink + 20 / shrink**2).all()
    assert 70 <= found.labels.sum() <= 130


def test_easier_figures():
    """Longer arrows; those that do not point at the circle point away from it."""
    found = ArrowPointing(48, 4, (40, 60), math.pi / 2).sample(200, torch.Generator().manual_seed(0))
    assert ((found.arrow[:, 3] >= 40 / 4) & (found.arrow[:, 3] <= 60 / 4)).all()
    for label, arrow, circle in zip(found.labels.tolist(), found.arrow.tolist(), found.circle.tolist(), strict=True):
        assert misses_by(arrow, circle) <= 1 / 1.2 + 1e-9 if label else misses_by(arrow, circle) == math.inf
    assert 70 <= found.labels.sum() <= 130


def test_the_generator_alone_decides():
    first, again, other = sample(192, 1, 4), sample(192, 1, 4), sample(192, 1, 4, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.images, other.images)
    assert torch.equal(ArrowPointing(192).draw(first.arrow, first.circle), first.images)


def test_right_compares_labels():
    found = sample(192, 1, 4)
    assert ArrowPointing(192).right(found.labels, found).all()
    assert not ArrowPointing(192).right(1 - found.labels, found).any()


def test_directions_are_those_of_the_image():
    """An arrow at pi/2 points down: its head is at the lower end."""
    arrow, circle = torch.tensor([[96, 96, math.pi / 2, 30]]), torch.tensor([[40.0, 40.0, 15.0]])
    image = ArrowPointing(192).draw(arrow.double(), circle.double())[0, 0]
    widths = (image[80:113, 60:] == 0).sum(1)
    assert widths[24:29].max() > 6
    assert widths[3:12].max() <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 100}, "size is 100; where shrink is 1 it must be at least 180"),
        ({"size": 40, "shrink": 4}, "it must be at least 45"),
        ({"shrink": 0.5}, "shrink is 0.5; it must be a whole number"),
        ({"size": 2.5}, "size is 2.5; it must be a whole number"),
        ({"length": (10, 70)}, r"length is \(10, 70\); it must be two numbers of pixels, rising, from 0 to 60"),
        ({"miss": 4.0}, "miss is 4.0; it must be an angle from 0 to pi"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(SeriatimError, match=message):
        ArrowPointing(**options)
