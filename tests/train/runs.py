"""Runs of the tiny language model, and ways for them to go wrong."""

import torch
from tiny_language import evaluation_batches, final_weights, new_model, new_run, next_token, training_batches

from seriatim.train.evaluate import evaluate
from seriatim.train.log import read_log
from seriatim.train.loop import fit

__all__ = ["PowerCutError", "assert_same_run", "changed", "failing", "figures", "held_out", "rising", "train"]


class PowerCutError(Exception):
    pass


def train(path, chosen, resume=False, objective=next_token, evaluation=None, carry=True, model=None, **options):
    model = model or new_model()
    run = new_run(path, model, chosen, resume)
    return fit(model, objective, training_batches(carry), chosen, run, evaluation, display="silent", **options)


def held_out(model):
    return evaluate(model, evaluation_batches())


def failing(call, error=PowerCutError, objective=next_token):
    """The objective, but the power goes at that call."""
    calls = iter(range(1, 1000))

    def objective_(model, batch, state):
        if next(calls) == call:
            raise error
        return objective(model, batch, state)

    return objective_


def changed(call, change, objective=next_token):
    """The objective, but its loss is changed at that call."""
    calls = iter(range(1, 1000))

    def objective_(model, batch, state):
        loss, state = objective(model, batch, state)
        return (change(loss) if next(calls) == call else loss), state

    return objective_


def figures(path):
    """The log without what the clock says."""
    return [{k: v for k, v in line.items() if "second" not in k} for line in read_log(path / "log.jsonl")]


def assert_same_run(one, other):
    left, right = final_weights(one), final_weights(other)
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert figures(one) == figures(other)
    names = [[folder.name for folder in sorted((path / "checkpoints").iterdir())] for path in (one, other)]
    assert names[0] == names[1]


def rising():
    """An evaluation that is best at the first time, and calls itself so."""
    figures = iter(range(1, 1000))
    return lambda model: {"figure": float(next(figures)), "other": 0.0}
