"""The prefix-bidirectional backbone with a prompt: what the conformance suite, which knows of no prompt, cannot see."""

import pytest
import torch

from seriatim import build
from seriatim import state as states
from seriatim.backbones.prefix_bidirectional import reference
from seriatim.core.errors import SeriatimError
from seriatim.core.prompts import expect_prompt

TIME = 13


@pytest.fixture
def mixer():
    made = build("prefix_bidirectional", dim=8, inner={"mixer": "gated_ssm", "state_size": 5}).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.5)
    return made


@pytest.fixture
def x():
    return torch.randn(3, TIME, 8, dtype=torch.float64)


def start(mixer, lengths):
    return expect_prompt(mixer.init_state(3), lengths)


def split_state(x, mask, forward, reverse):
    """The paper's section A.4 for one sequence: a state of two halves. Where the mask is 1 the forward half begins
    anew; where it is 2 nothing comes from the right, since the forget gate of the reverse half is 0.

    forward and reverse are the rows of the projections (i, z, f, o, and the columns of out) of each half.
    """
    halves = []
    for half, gone, order in ((forward, 1, range(len(x))), (reverse, 2, reversed(range(len(x))))):
        h, found = torch.zeros_like(half["z"][:, 0]), {}
        for t in order:
            i, f = (torch.sigmoid(half[name] @ x[t]) for name in ("i", "f"))
            f = f * 0 if mask[t] == gone else f
            h = f * h + i * (half["z"] @ x[t])
            found[t] = h
        halves.append([found[t] for t in range(len(x))])
    output_gate = torch.nn.functional.gelu(x @ torch.cat([forward["o"], reverse["o"]]).T)
    h = torch.cat([torch.stack(half) for half in halves], -1)  # the paper's concatenation
    return (output_gate * h) @ torch.cat([forward["out"], reverse["out"]], 1).T


def rows_of(m):
    layers = {"i": m.input_gate, "z": m.value, "f": m.forget_gate, "o": m.output_gate, "out": m.out}
    return {name: layer.weight for name, layer in layers.items()}


@pytest.mark.parametrize("prompt", [1, 4, TIME])
def test_it_is_the_papers_split_state(mixer, x, prompt):
    """Inputs, the token that says begin, then labels: the mask of section A.3 is 2 from that token on."""
    mask = [1] + [0] * (prompt - 2) + [2] * (TIME - prompt + 1) if prompt > 1 else [2] * TIME
    y = mixer(x, start(mixer, prompt))[0]
    halves = rows_of(mixer.forwards), rows_of(mixer.backwards)
    for row in range(3):
        assert torch.allclose(y[row], split_state(x[row], mask, *halves), atol=1e-12)


@pytest.mark.parametrize("prompt", [0, 1, 5, TIME])
def test_it_equals_its_reference(mixer, x, prompt):
    y, state = mixer(x, start(mixer, prompt))
    assert torch.allclose(y, reference(mixer, x, prompt), atol=1e-12)
    assert state.prompt.tolist() == [0, 0, 0]


def test_prompts_of_different_lengths(mixer, x):
    y, _ = mixer(x, start(mixer, torch.tensor([4, 0, 9])))
    for row, prompt in enumerate((4, 0, 9)):
        assert torch.allclose(y[row : row + 1], reference(mixer, x[row : row + 1], prompt), atol=1e-12)


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
    assert torch.allclose(state.inner, end.inner)


def test_each_piece_of_a_prompt_is_read_from_its_own_end(mixer, x):
    y, state = mixer(x[:, :2], start(mixer, 6))
    assert torch.allclose(y, reference(mixer, x[:, :2], 2))
    assert state.prompt.tolist() == [4, 4, 4]
    assert mixer(x[:, 2:], state)[1].prompt.tolist() == [0, 0, 0]


@pytest.mark.parametrize("inner", [{"mixer": "gated_ssm", "state_size": 5}, "mamba"])
def test_padding_is_no_prompt(inner, x):
    """A prompt that goes beyond the padding goes on in the next segment."""
    mixer = build("prefix_bidirectional", dim=8, inner=inner).double()
    lengths, spoilt = torch.tensor([3, 7, 0]), x.clone()
    for row, length in enumerate(lengths.tolist()):
        spoilt[row, length:] = float("nan")
    y, state = mixer(spoilt, start(mixer, 5), lengths=lengths)
    assert state.prompt.tolist() == [2, 0, 5]
    for row, length in enumerate(lengths.tolist()):
        alone, end = mixer(x[row : row + 1, :length], expect_prompt(mixer.init_state(1), 5))
        assert torch.allclose(y[row, :length], alone[0])
        ours, theirs = dict(states.leaves(states.take(state, torch.tensor([row])))), dict(states.leaves(end))
        assert all(torch.allclose(ours[name], theirs[name]) for name in theirs)


def test_a_reset_ends_the_prompt(mixer, x):
    reset = torch.zeros(3, TIME, dtype=torch.bool)
    reset[:, 4] = True
    y, state = mixer(x, start(mixer, 9), reset=reset)
    assert torch.allclose(y[:, :4], reference(mixer, x[:, :4], 4), atol=1e-12)
    assert torch.allclose(y[:, 4:], reference(mixer, x[:, 4:], 0), atol=1e-12)
    short = mixer(x[:, :6], start(mixer, 9), reset=reset[:, :6])[1]
    assert short.prompt.tolist() == state.prompt.tolist() == [0, 0, 0]


@pytest.mark.parametrize("inner", ["mamba", {"mixer": "gla", "heads": 2}, {"mixer": "window", "heads": 2, "size": 3}])
def test_any_causal_mixer_stands_inside(inner, x):
    mixer = build("prefix_bidirectional", dim=8, inner=inner).double()
    y = mixer(x, start(mixer, torch.tensor([5, 0, 13])))[0]
    for row, prompt in enumerate((5, 0, 13)):
        assert torch.allclose(y[row : row + 1], reference(mixer, x[row : row + 1], prompt), atol=1e-9)


def test_all_weights_learn_from_a_prompt(mixer, x):
    mixer(x, start(mixer, 5))[0].square().sum().backward()
    assert all((parameter.grad != 0).all() for parameter in mixer.parameters())


def test_its_halves_are_as_large_as_the_whole(mixer):
    whole = build("gated_ssm", dim=8, state_size=10)
    assert sum(p.numel() for p in mixer.parameters()) == sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "gated_sms"}, "inner: no mixer is named 'gated_sms'"),
        ({"inner": "bidirectional"}, "inner is a Bidirectional; it must be a causal mixer"),
        ({"inner": "gla", "dim": 0}, "dim is 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(SeriatimError, match=message):
        build("prefix_bidirectional", **{"dim": 16, **options})
