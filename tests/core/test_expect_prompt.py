"""Mixers that ask for a prompt, with one: what the conformance suite, which knows of no prompt, cannot see."""

import sys

import pytest
import torch

from seriatim import build
from seriatim import state as states
from seriatim.core.errors import SeriatimError
from seriatim.core.prompts import expect_prompt

TIME = 13
MIXERS = {
    "prefix_linear": {"mixer": "prefix_linear", "heads": 2, "feature_dim": 3},
    "bidirectional": {"mixer": "prefix_bidirectional", "inner": {"mixer": "gated_ssm", "state_size": 5}},
    "of mamba": {"mixer": "prefix_bidirectional", "inner": "mamba"},
}


@pytest.fixture(params=MIXERS.values(), ids=MIXERS)
def mixer(request):
    made = build(request.param, dim=8).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


@pytest.fixture
def x():
    return torch.randn(3, TIME, 8, dtype=torch.float64)


def start(mixer, lengths, batch=3):
    return expect_prompt(mixer.init_state(batch), lengths)


def reference(mixer, x, prompt):
    return sys.modules[type(mixer).__module__].reference(mixer, x, prompt)


def assert_same(found, wanted):
    for (name, a), (_, b) in zip(states.leaves(found), states.leaves(wanted), strict=True):
        assert torch.allclose(a, b), name


@pytest.mark.parametrize("prompt", [0, 1, 5, TIME])
def test_it_equals_its_reference(mixer, x, prompt):
    y, state = mixer(x, start(mixer, prompt))
    assert torch.allclose(y, reference(mixer, x, prompt), atol=1e-12)
    assert state.prompt.tolist() == [0, 0, 0]


def test_prompts_of_different_lengths(mixer, x):
    y, _ = mixer(x, start(mixer, torch.tensor([4, 0, 9])))
    for row, prompt in enumerate((4, 0, 9)):
        assert torch.allclose(y[row : row + 1], reference(mixer, x[row : row + 1], prompt), atol=1e-12)


def test_padding_is_no_prompt(mixer, x):
    """A prompt that goes beyond the padding goes on in the next segment."""
    lengths, spoilt = torch.tensor([3, 7, 0]), x.clone()
    for row, length in enumerate(lengths.tolist()):
        spoilt[row, length:] = float("nan")
    y, state = mixer(spoilt, start(mixer, 5), lengths=lengths)
    assert state.prompt.tolist() == [2, 0, 5]
    for row, length in enumerate(lengths.tolist()):
        alone, end = mixer(x[row : row + 1, :length], start(mixer, 5, batch=1))
        assert torch.allclose(y[row, :length], alone[0])
        assert_same(states.take(state, torch.tensor([row])), end)


def test_the_prompt_is_seen_from_both_sides_and_the_rest_is_causal(mixer, x):
    x.requires_grad_()
    y = mixer(x, start(mixer, 6))[0]
    (prompt,) = torch.autograd.grad(y[:, 0].sum(), x, retain_graph=True)
    (rest,) = torch.autograd.grad(y[:, 8].sum(), x)
    assert (prompt[:, :6] != 0).all(-1).all()
    assert (prompt[:, 6:] == 0).all()
    assert (rest[:, :9] != 0).all(-1).all()
    assert (rest[:, 9:] == 0).all()


def test_steps_after_the_prompt_are_the_whole(mixer, x):
    whole, end = mixer(x, start(mixer, 6))
    y, state = mixer(x[:, :6], start(mixer, 6))
    assert torch.allclose(y, whole[:, :6])
    for t in range(6, TIME):
        y, state = mixer.step(x[:, t], state)
        assert torch.allclose(y, whole[:, t])
    assert_same(state, end)


def test_a_reset_ends_the_prompt(mixer, x):
    reset = torch.zeros(3, TIME, dtype=torch.bool)
    reset[:, 4] = True
    y, state = mixer(x, start(mixer, 9), reset=reset)
    assert torch.allclose(y[:, :4], reference(mixer, x[:, :4], 4), atol=1e-12)
    assert torch.allclose(y[:, 4:], reference(mixer, x[:, 4:], 0), atol=1e-12)
    short = mixer(x[:, :6], start(mixer, 9), reset=reset[:, :6])[1]
    assert short.prompt.tolist() == state.prompt.tolist() == [0, 0, 0]


def test_all_weights_learn_from_a_prompt(mixer, x):
    mixer(x, start(mixer, 5))[0].square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in mixer.parameters())


def test_a_model_is_told_as_a_whole():
    model = build("language_model", vocab_size=9, dim=8, layers=["gru", MIXERS["prefix_linear"]])
    state = start(model, torch.tensor([3, 4]), batch=2)
    assert state[1].prompt.tolist() == [3, 4]
    tokens = torch.randint(9, (2, 6))
    other = tokens.clone()
    other[:, 2] = (other[:, 2] + 1) % 9
    y, z = (model(ids, state)[0] for ids in (tokens, other))
    assert (y[:, 0] != z[:, 0]).any()  # a later token of the prompt is seen


@pytest.mark.parametrize("lengths", [-1, True, 1.5, torch.zeros(2, dtype=torch.long), torch.zeros(3)])
def test_wrong_lengths_are_refused(lengths):
    with pytest.raises(SeriatimError, match="lengths"):
        start(build(MIXERS["prefix_linear"], dim=8), lengths)


def test_a_state_that_asks_for_none_is_refused():
    with pytest.raises(SeriatimError, match="no part that asks for a prompt"):
        start(build("gla", dim=16), 3)
