"""Birdie's reward, its model and its choice, on rewards made by hand."""

import math
from itertools import pairwise

import pytest
import torch

from seriatim.core.errors import SeriatimError
from seriatim.objectives.birdie.curriculum import Curriculum
from seriatim.objectives.birdie.denoising import Copying, Infilling, NextToken
from seriatim.objectives.birdie.reward import RewardModel, reward

THREE = [NextToken(length=8), Copying(length=8), Infilling(length=8)]
SCHEDULE = {"evaluations": (1, 2, 3), "every": 1, "control": 3}
SMALL = {"dim": 8, "layers": 1, "iterations": 2, "candidates": 256, **SCHEDULE}


def test_the_papers_two_examples_are_worth_the_same():
    """A loss from 4.5 to 4.2, and one from 0.6 to 0.5207 (section A.1.3)."""
    first, second = reward(torch.tensor([4.5, 0.6]), torch.tensor([4.2, 0.5207])).tolist()
    by_hand = 100 * math.e * math.tanh(math.e * math.sqrt(4.5 * 4.2) * (0.3 / 4.5) ** 3)
    assert first == pytest.approx(by_hand, rel=1e-4)
    assert first == pytest.approx(second, rel=5e-3)
    assert 0.9 < first < 1


def test_rewards_are_odd_and_clipped():
    old = torch.tensor([2.0, 2.0, 2.0, 2.0, 0.0])
    found = reward(old, torch.tensor([2.0, 1.0, 4.0, 2.01, 0.0]))
    assert found[:3].tolist() == [0.0, 1.0, -1.0]
    assert -0.01 < found[3] < 0
    assert found[4] == 0


def test_candidates_are_as_if_each_were_read_with_all_of_the_past():
    """Figure 4 of the paper: the past is repeated for each, and the last answer taken."""
    model = RewardModel(3, dim=8, layers=2).double()
    losses, actions, proposed = (torch.rand(n, 3, dtype=torch.float64) for n in (5, 5, 7))
    now = torch.rand(3, dtype=torch.float64)
    found = model.candidates(losses, actions, now, proposed)
    long = torch.cat([losses, now[None]]).expand(7, 6, 3)
    taken = torch.cat([actions.expand(7, 5, 3), proposed[:, None]], 1)
    assert torch.allclose(found, model(long, taken)[0][:, -1], atol=1e-12)


def train(curriculum, steps, first=1):
    """The first objective learns as fast as it is trained, the others never."""
    losses = torch.tensor([4.0, 4.0, 4.0]) if curriculum.now is None else curriculum.now
    for step in range(first, first + steps):
        curriculum.observe(step, losses)
        losses = losses * torch.tensor([1 - 0.12 * float(curriculum.weights[0]), 1.0, 1.0])
    return curriculum.weights


def test_the_objective_that_pays_is_trained_more():
    weights = train(Curriculum(THREE, dim=64, layers=2, iterations=40, candidates=256, **SCHEDULE), 8)
    assert weights[0] > 0.6
    assert weights.sum().item() == pytest.approx(1)


def test_weights_are_equal_until_it_has_control():
    curriculum = Curriculum(THREE, **SMALL)
    assert torch.allclose(train(curriculum, 2), torch.full((3,), 1 / 3))
    assert not torch.allclose(train(curriculum, 1, first=3), torch.full((3,), 1 / 3))


def test_it_repeats_and_goes_on_from_its_state():
    whole = train(Curriculum(THREE, **SMALL, seed=3), 6)
    curriculum = Curriculum(THREE, **SMALL, seed=3)
    train(curriculum, 4)
    other = Curriculum(THREE, **SMALL, seed=4)
    other.load_state_dict(curriculum.state_dict())
    assert torch.equal(train(other, 2, first=5), train(curriculum, 2, first=5))
    assert torch.equal(whole, train(Curriculum(THREE, **SMALL, seed=3), 6))
    assert not torch.equal(whole, train(Curriculum(THREE, **SMALL, seed=4), 6))


def test_its_seed_leaves_torchs_own_alone():
    before = torch.get_rng_state()
    train(Curriculum(THREE, **SMALL), 4)
    assert torch.equal(before, torch.get_rng_state())


def test_it_takes_the_mean_of_the_best_by_kind(monkeypatch):
    """Two ways of copying share the worth of their kind: together they are worth less than infilling here."""
    curriculum = Curriculum([Copying(length=8), Copying(length=4), Infilling(length=8)], **SMALL)
    worth = torch.tensor([1.5, 1.5, 1.0])
    monkeypatch.setattr(curriculum.model, "candidates", lambda losses, actions, now, proposed: proposed * worth)
    proposed = torch.rand(256, 3, generator=torch.Generator().manual_seed(0))
    proposed = proposed / proposed.sum(1, keepdim=True)
    best = (proposed * torch.tensor([0.75, 0.75, 1.0])).sum(1).topk(8).indices
    weights = curriculum._choose(torch.ones(3))
    assert torch.allclose(weights, proposed[best].mean(0))
    assert weights[2] > 0.7


def test_it_remembers_losses_before_and_rewards_after():
    curriculum = Curriculum(THREE, **SMALL)
    measured = [torch.tensor([4.0, 3.0, 2.0]) - 0.2 * step for step in range(5)]
    taken = []
    for step, losses in enumerate(measured, 1):
        taken.append(curriculum.weights)
        curriculum.observe(step, losses)
    assert torch.equal(curriculum.losses, torch.stack(measured[:-1]))
    assert torch.equal(curriculum.actions, torch.stack(taken[1:]))
    rewards = [reward(old, new) for old, new in pairwise(measured)]
    assert torch.equal(curriculum.rewards, torch.stack(rewards))


def test_when_it_is_due():
    curriculum = Curriculum(THREE, dim=8, layers=1)
    assert [step for step in range(5001) if curriculum.is_due(step)] == [
        *(10, 50, 250, 500, 1000, 1500, 2000, 3000, 4000, 5000)
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": 300}, "best is 300; it must be at most candidates, which is 256"),
        ({"iterations": 0}, "iterations is 0"),
        ({"sensitivity": 0.0}, "sensitivity is 0.0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(SeriatimError, match=message):
        Curriculum(THREE, **{**SMALL, **options})


@pytest.mark.parametrize("losses", [[1.0, 2.0], [1.0, math.nan, 2.0], [1.0, -1.0, 2.0]])
def test_wrong_losses_are_refused(losses):
    with pytest.raises(SeriatimError, match="losses are"):
        Curriculum(THREE, **SMALL).observe(1, torch.tensor(losses))


def test_a_state_of_other_objectives_is_refused():
    with pytest.raises(SeriatimError, match="the state is of 3 objectives; there are 2"):
        Curriculum(THREE[:2], **SMALL).load_state_dict(Curriculum(THREE, **SMALL).state_dict())
