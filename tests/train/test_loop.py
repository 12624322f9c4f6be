import json
import math
import signal

import pytest
import torch
from runs import changed, figures, held_out, rising, train
from tiny_language import evaluation_batches, final_weights, new_model, new_run, next_token, settings, training_batches

from seriatim.core.errors import SeriatimError
from seriatim.train import checkpoint
from seriatim.train.evaluate import evaluate
from seriatim.train.log import read_log
from seriatim.train.loop import TrainingError, fit


def test_it_learns(tmp_path):
    chosen = settings(steps=60, learning_rate=0.03, evaluate_every=30, log_every=30)
    result = train(tmp_path, chosen, evaluation=held_out)
    bits = [line["validation_bits_per_byte"] for line in read_log(tmp_path / "log.jsonl")]
    assert bits[1] < bits[0] < 8
    assert result.reason == "steps"
    assert result.progress.validation["bits_per_byte"] == bits[1]
    assert result.checkpoint == tmp_path / "checkpoints" / "step-00000060"
    assert evaluate(checkpoint.load(tmp_path), evaluation_batches())["bits_per_byte"] == bits[1]


def test_the_log_has_one_line_a_step(tmp_path):
    train(tmp_path, settings(), evaluation=held_out)
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    assert [line["step"] for line in lines if "validation_bits_per_byte" in line] == [4, 8, 12]
    assert [line["tokens"] for line in lines] == [16 * line["step"] for line in lines]
    assert all(line["tokens_per_second"] > 0 and line["gradient_norm"] > 0 for line in lines)
    assert lines[-1]["learning_rate"] == pytest.approx(settings().learning_rate * settings().final_rate)


def test_logged_losses_are_means_since_the_last_line(tmp_path):
    train(tmp_path / "a", settings(log_every=1))
    train(tmp_path / "b", settings(log_every=4))
    losses = [line["loss"] for line in read_log(tmp_path / "a" / "log.jsonl")]
    means = [line["loss"] for line in read_log(tmp_path / "b" / "log.jsonl")]
    assert means == pytest.approx([sum(losses[i : i + 4]) / 4 for i in (0, 4, 8)])


def test_the_last_three_checkpoints_are_kept(tmp_path):
    train(tmp_path, settings(checkpoint_every=2))
    assert [folder.name for folder in sorted((tmp_path / "checkpoints").iterdir())] == [
        f"step-{step:08d}" for step in (8, 10, 12)
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda loss: loss * math.nan, "the loss is nan at step 7"),
        (lambda loss: loss + math.inf, "the loss is inf at step 7"),
        (lambda loss: loss + (loss - loss.detach()).sqrt(), "the gradient's norm is (nan|inf) at step 7"),
    ],
)
def test_a_loss_that_is_not_finite_stops_at_once(tmp_path, change, message):
    model = new_model()
    with pytest.raises(
        TrainingError, match=rf"{message}; training stopped; the last good checkpoint is .*step-00000005"
    ):
        train(tmp_path, settings(), objective=changed(7, change), model=model)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert checkpoint.newest(tmp_path) == tmp_path / "checkpoints" / "step-00000005"
    assert all(value.isfinite().all() for value in final_weights(tmp_path).values())
    with pytest.raises(TrainingError, match="at step 2; training stopped; no checkpoint had been written yet"):
        train(tmp_path / "early", settings(), objective=changed(2, change))


def test_a_full_disk_stops_and_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    write, calls = checkpoint.save, iter(range(100))

    def save(*arguments):
        if next(calls) == 1:
            raise OSError(28, "No space left on device")
        write(*arguments)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(TrainingError, match=r"checkpoint cannot be written .*No space.* at step 10;.*step-00000005"):
        train(tmp_path, settings())


def test_an_interrupt_saves_and_says_how_to_go_on(tmp_path):
    def interrupted(model, batch, state):
        if not (tmp_path / "cut" / "checkpoints" / "step-00000007").exists():
            interrupted.calls += 1
            if interrupted.calls == 7:
                signal.raise_signal(signal.SIGINT)
        return next_token(model, batch, state)

    interrupted.calls = 0
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 7, which is saved in .*; resume to go on"):
        train(tmp_path / "cut", settings(), objective=interrupted, evaluation=held_out)
    assert signal.getsignal(signal.SIGINT) is before
    train(tmp_path / "cut", settings(), resume=True, evaluation=held_out)
    train(tmp_path / "whole", settings(), evaluation=held_out)
    assert figures(tmp_path / "cut") == figures(tmp_path / "whole")
    left, right = final_weights(tmp_path / "cut"), final_weights(tmp_path / "whole")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_patience_stops_early_and_keeps_the_best(tmp_path):
    result = train(tmp_path, settings(patience=4, evaluate_every=2, keep=2, checkpoint_every=8), evaluation=rising())
    assert result.reason == "patience"
    assert (result.progress.step, result.progress.best, result.progress.best_step) == (10, 1.0, 2)
    assert [folder.name[-2:] for folder in sorted((tmp_path / "checkpoints").iterdir())] == ["02", "08", "10"]
    best = checkpoint.load(tmp_path, "best")
    assert torch.equal(best.head.weight, final_weights(tmp_path / "checkpoints" / "step-00000002")["head.weight"])


def test_the_clock_stops_a_run(tmp_path):
    result = train(tmp_path, settings(minutes=1e-9), evaluation=held_out)
    assert (result.reason, result.progress.step) == ("minutes", 1)
    assert result.checkpoint.is_dir()
    assert "bits_per_byte" in result.progress.validation
    more = train(tmp_path, settings(minutes=0.0), resume=True, evaluation=held_out)
    assert (more.reason, more.progress.step) == ("steps", 12)


def test_without_steps_the_schedule_follows_the_clock(tmp_path, monkeypatch):
    times = iter(range(10_000))
    monkeypatch.setattr("seriatim.train.loop.perf_counter", lambda: float(next(times)))  # each step takes one second
    result = train(
        tmp_path, settings(steps=0, minutes=10 / 60, warmup=0.0, final_rate=0.0, schedule="linear", log_every=1)
    )
    assert (result.reason, result.progress.step) == ("minutes", 10)
    rates = [line["learning_rate"] for line in read_log(tmp_path / "log.jsonl")]
    assert rates == pytest.approx([settings().learning_rate * (1 - step / 10) for step in range(10)])


@pytest.mark.parametrize("carry", [True, False])
def test_the_state_is_carried_where_the_batches_say_so(tmp_path, carry):
    given, returned = [], []

    def watched(model, batch, state):
        given.append(state)
        loss, state = next_token(model, batch, state)
        returned.append(state)
        return loss, state

    train(tmp_path, settings(steps=4, accumulate=2), carry=carry, objective=watched)
    assert given[0] is None
    if not carry:
        assert given == [None] * 8
        return
    for before, after in zip(returned, given[1:], strict=False):
        assert torch.equal(before, after)
        assert not after.requires_grad


def test_accumulation_averages_the_batches(tmp_path):
    options = {"steps": 1, "warmup": 0.0, "weight_decay": 0.0, "clip": 0.0}
    gradients = []
    for accumulate, batch in ((1, 4), (2, 2)):
        model = new_model(dropout=0.0)
        batches = training_batches(False, batch)
        chosen = settings(accumulate=accumulate, **options)
        fit(model, next_token, batches, chosen, new_run(tmp_path / str(batch), model, chosen), display="silent")
        gradients.append([parameter.grad for parameter in model.parameters()])
        assert batches.batches_read == accumulate
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_long_gradients_are_cut(tmp_path):
    model = new_model()
    train(tmp_path, settings(steps=1, clip=0.01), model=model)
    norm = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm().item()
    assert norm == pytest.approx(0.01, rel=1e-3)
    assert read_log(tmp_path / "log.jsonl")[0]["gradient_norm"] > 0.1


def test_the_learning_rate_of_the_step_is_used(tmp_path):
    model = new_model()
    before = model.cell.weight_hh.detach().clone()
    train(tmp_path, settings(steps=10, warmup=1.0, minutes=1e-9, weight_decay=0.0, learning_rate=0.5), model=model)
    moved = (model.cell.weight_hh.detach() - before).abs().max().item()
    assert moved == pytest.approx(0.05, rel=1e-3)  # AdamW's first update is the learning rate, whatever the gradient


def test_the_model_is_in_training_mode_and_put_back_after_evaluations(tmp_path):
    modes = []

    def watched(model, batch, state):
        modes.append(model.training)
        return next_token(model, batch, state)

    train(tmp_path, settings(), objective=watched, evaluation=held_out, model=new_model().eval())
    assert modes == [True] * 12


def test_the_config_is_in_the_run_and_in_its_checkpoints(tmp_path):
    chosen = settings(steps=2)
    train(tmp_path, chosen)
    config = json.loads((tmp_path / "config.json").read_text())
    meta = json.loads((tmp_path / "checkpoints" / "step-00000002" / "meta.json").read_text())
    assert config == meta["config"] == {"model": "TinyLanguage", "train": chosen.plain()}
    assert meta["model"] == {"model": "tiny_language:TinyLanguage", "vocab_size": 257, "dim": 8, "dropout": 0.1}


def test_an_absent_device_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SeriatimError, match="device is 'cuda:99'"):
        train(tmp_path / "r1", settings(device="cuda:99"))
    assert not (tmp_path / "r1").exists()
