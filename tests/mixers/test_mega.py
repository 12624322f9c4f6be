"""Mega: its chunks, averages and biases."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError


def mega(**options):
    torch.manual_seed(0)
    mixer = build("mega", **{"dim": 4, "state_size": 2, "key_dim": 4} | options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def influence(mixer, time):
    """Which tokens (columns) have an influence on which outputs (rows)."""
    x = torch.randn(1, time, 4, dtype=torch.float64, requires_grad=True)
    y = mixer(x)[0].sum((0, 2))
    rows = [torch.autograd.grad(y[t], x, retain_graph=True)[0][0].abs().amax(1) > 0 for t in range(time)]
    return torch.stack(rows)


def test_without_averages_tokens_see_their_chunk():
    mixer, time = mega(chunk=4), 11
    with torch.no_grad():
        mixer.beta.zero_()
    place = torch.arange(time)
    wanted = (place[:, None] // 4 == place // 4) & (place <= place[:, None])
    assert torch.equal(influence(mixer, time), wanted)


def test_averages_carry_what_came_before_the_chunk():
    assert torch.equal(influence(mega(chunk=4), 11), torch.ones(11, 11).tril().bool())


def test_averages_are_damped_moving_averages():
    """With p = 1 / 2, no damping and beta = 1: the mean of a constant is reached by halves."""
    mixer = mega()
    with torch.no_grad():
        mixer.delta.zero_()
        mixer.alpha.fill_(40.0)  # a = 1
        mixer.beta.fill_(1.0)
        mixer.eta.fill_(2**-0.5)  # the sum of two averages / sqrt(2), each so weighted, is their mean
    system = mixer._averages()
    kernel = (system.C * system.A[:, None] ** 3 * system.B[:, None]).sum(2)
    assert_close([kernel], [torch.full_like(kernel, 0.5**4)], 1e-9, "weight of the third last token")


@pytest.mark.parametrize("bias", ["simple", "rotary"])
def test_a_chunk_as_long_as_the_sequence_is_attention_to_everything(bias):
    mixer, other = mega(chunk=20, bias=bias), mega(chunk=33, bias=bias)
    weights = mixer.state_dict()
    if bias == "simple":
        weights["position"] = torch.cat([weights["position"], torch.randn(13)])
    other.load_state_dict(weights)
    x = torch.randn(2, 20, 4, dtype=torch.float64)
    assert_close([other(x)[0]], [mixer(x)[0]], 1e-9, "output")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "relu"}, "attention is 'relu'; it must be one of laplace, softmax"),
        ({"bias": "alibi"}, "bias is 'alibi'; it must be one of rotary, simple"),
        ({"bias": "rotary", "key_dim": 3}, "key_dim is 3; it must be even for rotary biases"),
        ({"chunk": 0}, "chunk is 0; it must be a whole number above 0"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(SeriatimError, match=message):
        build("mega", dim=4, **options)
