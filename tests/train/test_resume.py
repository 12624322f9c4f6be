import pytest
import torch
from runs import PowerCutError, assert_same_run, failing, held_out, rising, train
from tiny_language import new_model, new_run, next_token, settings, training_batches

from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.objectives import next_token as library
from seriatim.train.generators import seed
from seriatim.train.log import read_log
from seriatim.train.loop import fit

VARIANTS = {
    "carried state": {},
    "packed": {"carry": False},
    "accumulated": {"accumulate": 2},
    "linear": {"schedule": "linear", "clip": 0.0},
    "bfloat16": {"precision": "bfloat16"},
    "patience": {"patience": 1, "evaluate_every": 2, "learning_rate": 1.0},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cut", [3, 9])
def test_a_run_that_was_cut_ends_as_one_that_was_not(tmp_path, variant, cut):
    options = dict(VARIANTS[variant])
    carry = options.pop("carry", True)
    chosen = settings(checkpoint_every=4 if cut > 3 else 1, **options)
    train(tmp_path / "whole", chosen, evaluation=held_out, carry=carry)
    objective = failing(cut * chosen.accumulate)
    try:
        train(tmp_path / "cut", chosen, evaluation=held_out, carry=carry, objective=objective)
    except PowerCutError:
        torch.rand(17)  # another process would stand elsewhere
        train(tmp_path / "cut", chosen, resume=True, evaluation=held_out, carry=carry)
    else:
        assert variant == "patience"
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize(
    ("layers", "carry"),
    [(["mamba", "gla"], True), (["gru", {"mixer": "window", "size": 5}, "aaren"], True), (["attention"], False)],
)
def test_a_cut_language_model_ends_as_one_that_was_not(tmp_path, layers, carry):
    def model():
        seed(0)
        return build("language_model", vocab_size=257, dim=16, layers=layers, dropout=0.1)

    chosen = settings(steps=6, checkpoint_every=2)
    objective = library.next_token
    train(tmp_path / "whole", chosen, objective=objective, evaluation=held_out, carry=carry, model=model())
    with pytest.raises(PowerCutError):
        train(
            tmp_path / "cut",
            chosen,
            objective=failing(6, objective=objective),
            evaluation=held_out,
            carry=carry,
            model=model(),
        )
    train(tmp_path / "cut", chosen, resume=True, objective=objective, evaluation=held_out, carry=carry, model=model())
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_run_cut_before_its_first_checkpoint_starts_again(tmp_path, capsys):
    chosen = settings(log_every=1)
    train(tmp_path / "whole", chosen)
    with pytest.raises(PowerCutError):
        train(tmp_path / "cut", chosen, objective=failing(4))
    assert [line["step"] for line in read_log(tmp_path / "cut" / "log.jsonl")] == [1, 2, 3]
    train(tmp_path / "cut", chosen, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_finished_run_is_not_trained_again(tmp_path):
    chosen = settings(patience=1, evaluate_every=1)
    first = train(tmp_path, chosen, evaluation=rising())
    files = {file: file.read_bytes() for file in (tmp_path / "checkpoints").rglob("*") if file.is_file()}
    result = train(tmp_path, chosen, resume=True, objective=failing(1), evaluation=rising())
    assert (result.reason, result.progress.step) == (first.reason, first.progress.step) == ("patience", 2)
    assert {file: file.read_bytes() for file in files} == files


def test_other_data_cannot_be_resumed(tmp_path):
    chosen, model = settings(), new_model()
    train(tmp_path, chosen)
    with pytest.raises(SeriatimError, match="the data is not what the run was started with"):
        fit(
            model,
            next_token,
            training_batches(batch=3),
            chosen,
            new_run(tmp_path, model, chosen, True),
            display="silent",
        )
