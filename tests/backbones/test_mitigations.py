"""Mamba-2 with another recurrence: what each mitigation of state collapse is equal to."""

import pytest
import torch

from seriatim import LanguageModel, build
from seriatim.analysis.matrix import mixing_matrix
from seriatim.backbones.mitigated_base import mitigate
from seriatim.core.build import spec

MAMBA2 = {"mixer": "mamba2", "state_size": 5, "head_dim": 4, "groups": 2}
MITIGATIONS = [
    {"mixer": "forgetful_mamba2", "retain": 0.9, "insert": 0.7},
    {"mixer": "normalized_state", "limit": 0.02},
    {"mixer": "state_window", "size": 5},
]
NEUTRAL = [
    {"mixer": "forgetful_mamba2", "retain": 1.0, "insert": 1.0},
    {"mixer": "normalized_state", "limit": 1e6},
    {"mixer": "state_window", "size": 40},
]


def trained_as(mixer):
    """In float64, with all parameters moved from where they begin."""
    mixer = mixer.double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer


def mamba2():
    return trained_as(build(MAMBA2, dim=8))


def tokens(time=30):
    return torch.randn(2, time, 8, dtype=torch.float64)


@pytest.mark.parametrize("mitigation", NEUTRAL, ids=lambda each: each["mixer"])
def test_where_nothing_is_mitigated_it_is_mamba2(mitigation):
    mixer, x = mamba2(), tokens()
    torch.testing.assert_close(mitigate(mixer, mitigation)(x)[0], mixer(x)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=lambda each: each["mixer"])
def test_a_mitigation_changes_the_state(mitigation):
    mixer, x = mamba2(), tokens()
    assert (mitigate(mixer, mitigation)(x)[0] - mixer(x)[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("size", "pieces"), [(1, [30]), (5, [30]), (7, [3, 1, 0, 13, 13]), (29, [15, 15])])
def test_the_difference_of_states_is_a_window_of_mamba2s_own_matrix(size, pieces):
    mixer, x = mamba2(), tokens()
    window = mitigate(mixer, {"mixer": "state_window", "size": size})
    age = torch.arange(30)[:, None] - torch.arange(30)
    wanted = mixing_matrix(mixer, x).masked_fill(age >= size, 0)
    torch.testing.assert_close(mixing_matrix(window, x), wanted, rtol=1e-9, atol=1e-9)
    state, found = None, []
    for piece in x.split(pieces, 1):
        y, state = window(piece, state)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), window(x)[0], rtol=1e-9, atol=1e-9)


def test_a_window_stays_exact_where_states_have_grown_long():
    """In float32, after 4,000 tokens: what is read is still what a state begun at the window holds."""
    mixer = mamba2()
    with torch.no_grad():
        mixer.decay.A_log.fill_(-8.0)  # hardly anything fades
    exact = mitigate(mixer, {"mixer": "state_window", "size": 16})
    x = tokens(4000)
    wanted = exact(x)[0][:, -100:]
    found = exact.float()(x.float())[0][:, -100:]
    assert (found - wanted).norm() / wanted.norm() < 1e-3


def test_a_faster_decay_and_a_weaker_insertion_are_factors_of_the_matrix():
    mixer, x = mamba2(), tokens()
    found = mixing_matrix(mitigate(mixer, MITIGATIONS[0]), x)
    age = torch.arange(30.0, dtype=torch.float64)[:, None] - torch.arange(30)
    skip = torch.diag_embed(mixer.D[:, None].expand(-1, 30))
    wanted = (mixing_matrix(mixer, x) - skip) * 0.7 * (0.9**age).tril() + skip
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_no_head_outgrows_the_limit_and_a_smaller_one_is_left_alone():
    mixer, x = mamba2(), 3 * tokens()
    free = mixer(x)[1].system.detach().flatten(2).norm(dim=2)
    limit = float(free.median())
    held = mitigate(mixer, {"mixer": "normalized_state", "limit": limit})(x)[1].system.flatten(2).norm(dim=2)
    assert free.max() > 1.1 * limit
    assert held.max() <= limit * (1 + 1e-12)
    assert held.min() < 0.99 * limit


@pytest.mark.parametrize("mitigation", MITIGATIONS, ids=lambda each: each["mixer"])
def test_a_model_is_mitigated_with_its_weights(mitigation):
    layers = [MAMBA2, {"mixer": "gla", "heads": 2}, MAMBA2]
    model = trained_as(LanguageModel(11, dim=8, layers=layers))
    copy = mitigate(model, mitigation)
    assert [layer["mixer"] for layer in copy.layers] == [mitigation["mixer"], "gla", mitigation["mixer"]]
    assert not copy.training
    assert next(copy.parameters()).dtype == torch.float64
    ours, theirs = ([p for _, p in sorted(m.state_dict().items())] for m in (model, copy))
    assert sum(p.numel() for p in ours) == sum(p.numel() for p in theirs)
    blocks = list(zip(model.stack.blocks, copy.stack.blocks, strict=True))
    for index in (0, 2):
        assert torch.equal(blocks[index][1].mixer.mamba.in_proj.weight, blocks[index][0].mixer.in_proj.weight)
    for mine, other in zip(blocks[1][0].parameters(), blocks[1][1].parameters(), strict=True):
        assert torch.equal(mine, other)
    again = build(spec(copy)).double()
    again.load_state_dict(copy.state_dict())
    read = torch.randint(11, (1, 20))
    assert torch.equal(again.eval()(read)[0], copy(read)[0])
    assert (copy(read)[0] - model(read)[0]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("forgetful_mamba2", {"retain": 0}, "retain is 0; it must be above 0 and at most 1"),
        ("forgetful_mamba2", {"retain": 1.1}, "retain is 1.1; it must be above 0 and at most 1"),
        ("forgetful_mamba2", {"insert": True}, "insert is True; it must be a finite number"),
        ("normalized_state", {"limit": 0.0}, "limit is 0.0; it must be a finite number above 0"),
        ("state_window", {"size": 0}, "size is 0; it must be a whole number above 0"),
        ("state_window", {"inner": "gla"}, "inner is a GLA; it must be a mamba2 of 8 features"),
        ("state_window", {"inner": {"mixer": "mamba2", "heads": 3}}, "inner: mamba2 has no option 'heads'"),
    ],
)
def test_bad_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, dim=8, **options)


def test_what_cannot_be_mitigated_is_said():
    with pytest.raises(ValueError, match="mitigation is 'gla'; it must be the spec of a mitigation"):
        mitigate(mamba2(), "gla")
    with pytest.raises(ValueError, match="model is a LanguageModel without a mamba2 among its layers"):
        mitigate(LanguageModel(11, dim=8, layers=["gla"]), "state_window")
    with pytest.raises(ValueError, match="model is a GLA without a mamba2"):
        mitigate(build("gla", dim=8, heads=2), "state_window")
