"""Prefix linear attention with a prompt: what the conformance suite, which knows of no prompt, cannot see."""

import pytest
import torch

from seriatim import build
from seriatim import state as states
from seriatim.core.errors import SeriatimError
from seriatim.core.prompts import expect_prompt
from seriatim.mixers.linear_attention.prefix_linear import reference

TIME = 13


@pytest.fixture
def mixer():
    made = build("prefix_linear", dim=8, heads=2, feature_dim=3).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


@pytest.fixture
def x():
    return torch.randn(3, TIME, 8, dtype=torch.float64)


def start(mixer, lengths):
    return expect_prompt(mixer.init_state(3), lengths)


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
    _, state = mixer(spoilt, start(mixer, 5), lengths=lengths)
    assert state.prompt.tolist() == [2, 0, 5]
    for row, length in enumerate(lengths.tolist()):
        alone = mixer(x[row : row + 1, :length], expect_prompt(mixer.init_state(1), 5))[1]
        assert torch.allclose(states.take(state, torch.tensor([row])).memory, alone.memory)


def test_steps_after_the_prompt_are_the_whole(mixer, x):
    whole, end = mixer(x, start(mixer, 6))
    y, state = mixer(x[:, :6], start(mixer, 6))
    assert torch.allclose(y, whole[:, :6])
    for t in range(6, TIME):
        y, state = mixer.step(x[:, t], state)
        assert torch.allclose(y, whole[:, t])
    assert torch.allclose(state.memory, end.memory)


def test_a_prompt_in_pieces_ends_in_the_same_state(mixer, x):
    _, end = mixer(x, start(mixer, 6))
    state = start(mixer, 6)
    for piece in x.split((2, 1, 5, 5), 1):
        _, state = mixer(piece, state)
    assert torch.allclose(state.memory, end.memory)
    assert state.prompt.tolist() == [0, 0, 0]


def test_the_prompt_is_seen_from_both_sides_and_the_rest_is_causal(mixer, x):
    x.requires_grad_()
    y = mixer(x, start(mixer, 6))[0]
    (prompt,) = torch.autograd.grad(y[:, 0].sum(), x, retain_graph=True)
    (rest,) = torch.autograd.grad(y[:, 8].sum(), x)
    assert (prompt[:, :6] != 0).all(-1).all()
    assert (prompt[:, 6:] == 0).all()
    assert (rest[:, :9] != 0).all(-1).all()
    assert (rest[:, 9:] == 0).all()


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
    layers = ["gru", {"mixer": "prefix_linear", "heads": 2, "feature_dim": 3}]
    model = build("language_model", vocab_size=9, dim=8, layers=layers)
    state = expect_prompt(model.init_state(2), torch.tensor([3, 4]))
    assert state[1].prompt.tolist() == [3, 4]
    tokens = torch.randint(9, (2, 6))
    other = tokens.clone()
    other[:, 2] = (other[:, 2] + 1) % 9
    y, z = (model(ids, state)[0] for ids in (tokens, other))
    assert (y[:, 0] != z[:, 0]).any()  # a later token of the prompt is seen


@pytest.mark.parametrize("lengths", [-1, True, 1.5, torch.zeros(2, dtype=torch.long), torch.zeros(3)])
def test_wrong_lengths_are_refused(mixer, lengths):
    with pytest.raises(SeriatimError, match="lengths"):
        start(mixer, lengths)


def test_a_state_that_asks_for_none_is_refused():
    with pytest.raises(SeriatimError, match="no part that asks for a prompt"):
        expect_prompt(build("gla", dim=16).init_state(2), 3)
