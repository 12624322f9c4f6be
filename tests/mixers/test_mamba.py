"""Mamba's transitions, positive and signed."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build

DIM = 16
KINDS = ["positive", "signed"]


def transition(mixer, x):
    """By what one token x (1, 1, dim) multiplies each number of the system's state, (E, N)."""
    start = mixer.init_state(1)
    ones = start._replace(system=torch.ones_like(start.system))
    return (mixer(x, ones)[1].system - mixer(x, start)[1].system)[0]


def made(eigenvalues, steps):
    """A mixer whose steps are near `steps`."""
    mixer = build("mamba", dim=DIM, eigenvalues=eigenvalues)
    with torch.no_grad():
        mixer.dt_proj.bias.fill_(steps).expm1_().log_()
    return mixer


@pytest.mark.parametrize("steps", [1e-3, 0.1, 5.0])
def test_signed_eigenvalues_reach_below_zero(steps):
    x = torch.randn(1, 1, DIM, dtype=torch.float64)
    positive, signed = (transition(made(kind, steps).double(), x).detach() for kind in KINDS)
    assert 0 <= positive.min() <= positive.max() <= 1
    assert -1 <= signed.min() <= signed.max() <= 1
    if steps > 1:
        assert signed.min() < -0.99


def test_signed_transitions_are_twice_the_positive_less_one():
    x = torch.randn(1, 1, DIM, dtype=torch.float64)
    positive, signed = (made(kind, 0.2).double() for kind in KINDS)
    signed.load_state_dict(positive.state_dict())
    assert_close([transition(signed, x)], [2 * transition(positive, x) - 1], 1e-12, "value")


@pytest.mark.parametrize("eigenvalues", KINDS)
@pytest.mark.parametrize("steps", [0.01, 20.0])
@torch.no_grad()
def test_thousands_of_tokens_stay_bounded_in_single_precision(eigenvalues, steps):
    """Long signed steps turn the state over at every token, and what was written is never damped."""
    mixer = made(eigenvalues, steps)
    state = mixer.init_state(2)
    for _ in range(10):
        y, state = mixer(torch.randn(2, 400, DIM), state)
        assert y.isfinite().all()
    assert state.system.abs().max() < 1e3


@pytest.mark.parametrize("eigenvalues", KINDS)
@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_gradients_are_finite_at_extreme_steps(eigenvalues, size):
    mixer = build("mamba", dim=DIM, eigenvalues=eigenvalues)
    with torch.no_grad():
        mixer.dt_proj.bias.fill_(size)
    x = torch.randn(2, 70, DIM, requires_grad=True)
    y, state = mixer(x)
    (y.square().mean() + state.system.square().mean()).backward()
    assert y.isfinite().all()
    for name, z in [("x", x), *mixer.named_parameters()]:
        assert z.grad.isfinite().all(), name


def test_wrong_eigenvalues_are_named():
    with pytest.raises(ValueError, match="eigenvalues is 'negative'; it must be one of"):
        build("mamba", dim=DIM, eigenvalues="negative")
