"""The prefix-bidirectional backbone with a prompt; what holds of any mixer with one: core/test_expect_prompt.py."""

import pytest
import torch

from seriatim import build
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


def test_each_piece_of_a_prompt_is_read_from_its_own_end(mixer, x):
    y, state = mixer(x[:, :2], start(mixer, 6))
    assert torch.allclose(y, reference(mixer, x[:, :2], 2))
    assert state.prompt.tolist() == [4, 4, 4]
    assert mixer(x[:, 2:], state)[1].prompt.tolist() == [0, 0, 0]


@pytest.mark.parametrize("inner", ["mamba", {"mixer": "gla", "heads": 2}, {"mixer": "window", "heads": 2, "size": 3}])
def test_any_causal_mixer_stands_inside(inner, x):
    mixer = build("prefix_bidirectional", dim=8, inner=inner).double()
    y = mixer(x, start(mixer, torch.tensor([5, 0, 13])))[0]
    for row, prompt in enumerate((5, 0, 13)):
        assert torch.allclose(y[row : row + 1], reference(mixer, x[row : row + 1], prompt), atol=1e-9)


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
