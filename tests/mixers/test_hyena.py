"""Hyena: its filters, and how far back it sees."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError


def hyena(**options):
    torch.manual_seed(0)
    return build("hyena", dim=4, features=5, width=8, **options).double()


def test_it_is_a_product_of_diagonal_and_toeplitz_matrices():
    """The paper's matrix form: y = D_N S_N ... D_1 S_1 v, for a sequence as long as the filters."""
    mixer, time = hyena(order=3, filter_length=40), 40
    x = torch.randn(2, time, 4, dtype=torch.float64)
    inputs, _ = mixer.short(mixer.project(x))
    *gates, z = inputs.chunk(4, -1)
    lag = torch.arange(time)[:, None] - torch.arange(time)
    for n, kernel in enumerate(mixer.filters()):
        toeplitz = kernel[:, lag.clamp(min=0)].masked_fill(lag < 0, 0.0)
        toeplitz = toeplitz + mixer.skip[n, :, None, None] * torch.eye(time)
        z = gates[n] * torch.einsum("dts,bsd->btd", toeplitz, z)
    assert_close([mixer(x)[0]], [mixer.out(z)], 1e-9, "output")


def test_it_sees_as_far_as_its_filters_reach():
    mixer = hyena(order=2, filter_length=5, conv_size=3)
    x = torch.randn(1, 30, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mixer(x)[0][:, -1].sum(), x)
    seen = gradient[0].abs().amax(1) > 1e-12
    reach = 2 * (5 - 1) + (3 - 1) + 1  # two filters, the short convolution, the token itself
    assert seen[-reach:].all()
    assert not seen[:-reach].any()


def test_windows_fade_at_rates_between_the_two_bounds():
    mixer = hyena(order=1, filter_length=101)
    with torch.no_grad():
        mixer.last.weight.zero_()
        mixer.last.weight[:, 0] = 1.0
        for layer in (mixer.first, mixer.second, mixer.third):
            layer.weight.zero_()
            layer.bias.fill_(1.0)
    filters = mixer.filters()[0]
    assert_close([filters[3, 30] / filters[3, 0]], [torch.tensor(1e-2, dtype=torch.float64)], 1e-9, "fastest")
    assert_close([filters[0, 100] / filters[0, 0]], [torch.tensor(1e-2 ** (2 / 3)).double()], 1e-6, "slowest")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 4}, "features is 4; it must be odd and at least 3"),
        ({"features": 1}, "features is 1; it must be odd and at least 3"),
        ({"filter_length": 0}, "filter_length is 0; it must be a whole number above 0"),
        ({"frequency": 0.0}, "frequency is 0.0; it must be a finite number above 0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(SeriatimError, match=message):
        build("hyena", dim=4, **options)


@torch.no_grad()
def test_filters_are_written_once_for_a_stream_and_again_when_they_change():
    mixer, x = hyena(filter_length=20), torch.randn(2, 3, 4, dtype=torch.float64)
    _, state = mixer.step(x[:, 0], mixer.init_state(2))
    kept = mixer.kept(mixer.filters)
    mixer.step(x[:, 1], state)
    assert mixer.kept(mixer.filters) is kept
    mixer.last.weight.mul_(2)
    y, _ = mixer.step(x[:, 1], state)
    assert_close([y], [mixer(x[:, 1:], state)[0][:, 0]], 1e-12, "step")
