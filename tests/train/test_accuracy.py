"""Accuracy, against models whose answers are known."""

import pytest
import torch
from torch import nn

from seriatim.core.build import build
from seriatim.data.task_batches import generator
from seriatim.train.accuracy import accuracy


class Answers(nn.Module):
    """Says what a function of the tokens says."""

    def __init__(self, answer, vocab_size):
        super().__init__()
        self.answer, self.vocab_size = answer, vocab_size
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, tokens):
        assert not self.training
        return nn.functional.one_hot(self.answer(tokens), self.vocab_size).float(), ()


def measured(answer, task, lengths=(8, 40), sequences=70):
    model = Answers(answer, task.vocab_size).train()
    found = accuracy(model, task, lengths, sequences, lambda length: generator(0, length))
    assert model.training
    return found


def test_a_model_that_knows_is_always_right():
    for row in measured(lambda tokens: tokens.cumsum(1) % 2, build({"task": "parity"})):
        assert row["accuracy"] == row["whole"] == 1
        assert row["answers"] == 70 * row["length"] == sum(level["answers"] for level in row["levels"])
        assert 0.5 <= row["baseline"] < 0.6


def test_levels_tell_where_a_model_fails():
    """It counts to three ones, and says 0 from there on."""
    task = build({"task": "parity"})
    (row,) = measured(lambda tokens: (tokens.cumsum(1) % 2) * (tokens.cumsum(1) < 4), task, [40])
    for level in row["levels"]:
        assert (level["accuracy"] == 1) == (level["to"] < 4)
    mean = sum(level["answers"] * level["accuracy"] for level in row["levels"]) / row["answers"]
    assert row["accuracy"] == pytest.approx(mean)
    spans = [(level["from"], level["to"]) for level in row["levels"]]
    assert spans == [(0, 0), (1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]


def test_the_baseline_is_the_best_constant_answer():
    task = build({"task": "mqar", "keys": 8})
    (row,) = measured(lambda tokens: torch.full_like(tokens, 12), task, [16])
    shares = [measured(lambda tokens, v=v: torch.full_like(tokens, v), task, [16])[0]["accuracy"] for v in range(17)]
    assert row["baseline"] == max(shares) > 0
    assert [level["from"] for level in row["levels"]] == [1, 2, 4]


def test_every_allowed_answer_counts():
    task = build({"task": "icll"})
    (row,) = measured(lambda tokens: torch.full_like(tokens, 3), task, [20])
    shares = [measured(lambda tokens, v=v: torch.full_like(tokens, v), task, [20])[0]["accuracy"] for v in range(19)]
    assert row["baseline"] == max(shares)
    assert row["accuracy"] == shares[3] > 0
