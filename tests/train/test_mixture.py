"""Birdie's mixture in the training loop: the weights that its rewards chose survive a cut."""

import pytest
import torch
from runs import PowerCutError, assert_same_run, failing
from tiny_language import documents, new_run, settings, training_batches

import seriatim as sq
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.data.batches import PackedBatches
from seriatim.data.task_batches import TaskBatches
from seriatim.data.tokenizer import ByteTokenizer
from seriatim.objectives.birdie.batches import DenoisingBatches
from seriatim.objectives.birdie.curriculum import Curriculum
from seriatim.objectives.birdie.denoising import Copying, Infilling, NextToken
from seriatim.objectives.birdie.mixture import denoising_loss, objective_losses
from seriatim.objectives.birdie.special import SpecialTokens
from seriatim.train.generators import seed
from seriatim.train.loop import fit

THREE = (NextToken(length=16), Copying(length=8), Infilling(length=12))
SPECIAL = SpecialTokens(257)


def new_model():
    seed(0)
    return sq.LanguageModel(SPECIAL.size, dim=8, layers=["gru"], feed_forward="none")


def new_batches(model, objectives=THREE):
    windows = PackedBatches(documents(), ByteTokenizer(), 4, 16)
    fixed = next(windows).tokens
    curriculum = Curriculum(
        objectives, evaluations=(1, 2), every=2, control=2, iterations=2, candidates=64, dim=8, layers=1
    )
    return DenoisingBatches(windows, curriculum, SPECIAL, lambda: objective_losses(model, fixed, objectives, SPECIAL))


def train(path, resume=False, objective=denoising_loss):
    model, chosen = new_model(), settings(steps=9, checkpoint_every=3)
    batches = new_batches(model)
    fit(model, objective, batches, chosen, new_run(path, model, chosen, resume), display="silent")
    return batches.curriculum


@pytest.mark.parametrize("cut", [3, 6, 9])
def test_a_run_that_was_cut_draws_objectives_as_one_that_was_not(tmp_path, cut):
    whole = train(tmp_path / "whole")
    with pytest.raises(PowerCutError):
        train(tmp_path / "cut", objective=failing(cut, objective=denoising_loss))
    other = train(tmp_path / "cut", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    assert not torch.allclose(whole.weights, torch.full((3,), 1 / 3), atol=0.01)
    left, right = whole.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_it_is_measured_when_it_is_due():
    measured = []

    def measure():
        measured.append(batches.batches_read)
        return torch.ones(3)

    batches = new_batches(new_model())
    batches.measure = measure
    for _ in range(8):
        next(batches)
    assert measured == [1, 2, 4, 6]


def test_other_objectives_are_refused():
    model = new_model()
    with pytest.raises(SeriatimError, match="the objectives are not what the run was started with"):
        new_batches(model, (*THREE[:2], Infilling(length=10))).load_state_dict(new_batches(model).state_dict())


def test_windows_that_go_on_are_refused():
    curriculum = Curriculum(THREE, dim=8, layers=1)
    with pytest.raises(SeriatimError, match="windows is ContiguousBatches; its windows must stand alone"):
        DenoisingBatches(training_batches(), curriculum, SPECIAL, lambda: torch.ones(3))


def test_a_run_on_other_data_cannot_be_resumed():
    ours, text, task = new_batches(new_model()), training_batches(), TaskBatches(build({"task": "parity"}), 2, 4, 8)
    for batches in (ours, text, task):
        for other in (ours, text, task):
            if other is not batches:
                with pytest.raises(SeriatimError, match="not what the run was started with, so it cannot be resumed"):
                    batches.load_state_dict(other.state_dict())


def test_a_reward_model_of_another_size_is_refused_before_anything_is_changed():
    one, other = (Curriculum(THREE, dim=dim, layers=1, candidates=16, iterations=1) for dim in (8, 16))
    for losses in (torch.ones(3), torch.ones(3) / 2):
        one.observe(250, losses)
    with pytest.raises(SeriatimError, match="the state is of a reward model of another size"):
        other.load_state_dict(one.state_dict())
    assert len(other.losses) == 0
