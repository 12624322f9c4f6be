"""Digits that fly about, against a walk of each by itself."""

import math

import pytest
import torch

from seriatim.core.errors import SeriatimError
from seriatim.tasks.moving_digits import MovingDigits, fly

KINDS = [{}, {"size": 24, "digits": 1, "speed": 0.4}, {"size": 41, "digits": 3, "magnify": 2, "speed": 0.02}]


def sample(batch=6, length=60, seed=0, held_out=False, **options):
    task = MovingDigits(**options)
    task = task.held_out() if held_out else task
    return task, task.sample(batch, length, torch.Generator().manual_seed(seed))


def walked(place, velocity, steps):
    """One coordinate, step by step."""
    found = []
    for _ in range(steps):
        place += velocity
        if place <= 0:
            place, velocity = 0.0, -velocity
        if place >= 1:
            place, velocity = 1.0, -velocity
        found.append(place)
    return found


def test_the_way_is_walked_and_bounces():
    random = torch.Generator().manual_seed(0)
    start, velocity = (torch.rand(40, 2, 2, generator=random, dtype=torch.float64) for _ in range(2))
    velocity = velocity - 0.5
    found = fly(start, velocity, 30)
    for film in range(40):
        for digit in range(2):
            for axis in range(2):
                wanted = walked(start[film, digit, axis].item(), velocity[film, digit, axis].item(), 30)
                assert found[film, :, digit, axis].tolist() == wanted


def test_a_bounce_by_hand():
    place, velocity = torch.tensor([[0.75, 0.25]]), torch.tensor([[0.5, -0.125]])
    wanted = [[1.0, 0.125], [0.5, 0.0], [0.0, 0.125], [0.5, 0.25], [1.0, 0.375], [0.5, 0.5]]
    assert fly(place, velocity, 6).tolist() == [wanted]


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_frames_hold_the_digits_at_their_places(options):
    task, found = sample(batch=3, length=20, **options)
    assert found.frames.shape == (3, 20, 1, task.size, task.size)
    for film in range(3):
        for time in range(20):
            wanted = torch.zeros(task.size, task.size)
            for image, (row, column) in zip(found.images[film], found.places[film, time].tolist(), strict=True):
                for i in range(task.side):
                    for j in range(task.side):
                        wanted[row + i, column + j] = max(wanted[row + i, column + j], image[i, j])
            assert torch.equal(found.frames[film, time, 0], wanted)


@pytest.mark.parametrize("options", KINDS, ids=str)
def test_digits_fly_straight_at_their_speed_and_to_every_border(options):
    task, found = sample(batch=40, length=200, **options)
    free = task.size - task.side
    assert (found.places.min(), found.places.max()) == (0, free)
    steps = found.places.diff(dim=1)
    inside = (found.places > 0) & (found.places < free)
    flying = (inside[:, :-1] & inside[:, 1:]).all(-1)
    lengths = steps.double().norm(dim=-1)[flying]
    assert (lengths - task.speed * free).abs().max() < math.sqrt(2)  # of corners on whole pixels
    assert abs(lengths.mean() - task.speed * free) < 0.25 + 0.1 * task.speed * free
    turns = steps[:, 1:] - steps[:, :-1]
    straight = flying[:, 1:] & flying[:, :-1]
    assert (turns[straight].abs() <= 2).all()


def test_pictures_are_held_out():
    task, found = sample(batch=300, length=1)
    other = task.held_out().sample(300, 1, torch.Generator().manual_seed(0))
    seen, tested = ({tuple(image.flatten().tolist()) for image in z.images.flatten(0, 1)} for z in (found, other))
    assert not seen & tested
    assert set(found.labels.flatten().tolist()) == set(range(10))


def test_magnified_pictures_are_made_of_squares():
    _, found = sample(batch=1, length=2, digits=1, size=30, magnify=3)
    image = found.images[0, 0]
    assert image.shape == (24, 24)
    assert torch.equal(image, image[1::3, 1::3].repeat_interleave(3, 0).repeat_interleave(3, 1))


def test_the_generator_alone_decides():
    (_, first), (_, again), (_, other) = sample(), sample(), sample(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.frames, other.frames)


def test_errors_are_of_each_frame():
    task, found = sample(batch=2, length=3)
    wrong = found.frames.clone()
    wrong[1, 2] += 0.1
    assert torch.allclose(task.errors(wrong, found.frames), torch.tensor([[0, 0, 0], [0, 0, 0.01]]))
    assert abs(task.psnr(wrong, found.frames)[1, 2] - 20) < 1e-3


def test_films_of_other_shapes_are_not_compared():
    task, found = sample(batch=2, length=3)
    for measure in (task.errors, task.psnr):
        with pytest.raises(
            SeriatimError, match=r"predictions have shape \(2, 1, .*; they must be like frames, \(2, 3, "
        ):
            measure(found.frames[:, :1], found.frames)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "size is 8; digits of 8 x 8 pixels need more"),
        ({"size": 16, "magnify": 2}, "size is 16; digits of 16 x 16 pixels need more"),
        ({"speed": 1.0}, "speed is 1.0; it must be below 1"),
        ({"speed": 0}, "speed is 0; it must be a finite number above 0"),
        ({"digits": 0}, "digits is 0; it must be a whole number above 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(SeriatimError, match=message):
        MovingDigits(**options)
