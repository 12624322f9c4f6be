"""What a recurrent model of small state can say about two sets depends on which comes first; shown the context twice,
it says more.
"""

from random import Random

import torch

from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, trained
from seriatim.tasks.base import IGNORED, Row, TokenTask
from seriatim.tasks.set_disjointness import SetDisjointness

SOURCE = "2407.05483"
LENGTH, SYMBOLS, SHORT = 24, 24, 3
LEARNT = 0.1  # below it a model says no more than guesses


class ReadTwice(TokenTask):
    """Another task's sequences, all but the question a second time before it."""

    difficulty = SetDisjointness.difficulty

    def __init__(self, task: TokenTask):
        self.task, self.vocab_size, self.shortest = task, task.vocab_size, 2 * task.shortest

    def row(self, length: int, random: Random) -> Row:
        tokens, targets, levels, _ = self.task.row(length // 2 + 1, random)
        tokens = tokens[:-1] + tokens
        return Row(tokens, [IGNORED] * (len(tokens) - 1) + targets[-1:], levels[-1:] * len(tokens))


def rate(task: TokenTask, length: int, quick: bool, seed: int) -> float:
    """The share of right answers of a small GLA model."""
    spec = {"mixer": "gla", "heads": 1}
    model = trained(
        task, [spec, spec], dim=32, steps=3 if quick else 1000, batch=32, lengths=(length, length), seed=seed
    )
    with torch.no_grad():
        return answers(model, task, length, 512)


def run(quick: bool, seed: int) -> list[Finding]:
    """Which element two sets have in common, of 3 and 18 elements."""
    orders = {order: SetDisjointness(SHORT, SYMBOLS, order) for order in ("short_first", "long_first")}
    short, long = (rate(task, LENGTH, quick, seed) for task in orders.values())
    twice = rate(ReadTwice(orders["long_first"]), 2 * LENGTH - 2, quick, seed)
    return [
        Finding(
            "short set first, long set first",
            "short first is easier",
            f"{short:.2f}, {long:.2f} (guesses: {1 / SYMBOLS:.2f})",
            None if quick or min(short, long) < LEARNT else short > long,
        ),
        Finding(
            "long set first, read once, read twice",
            "11 points more over 6 tasks",
            f"{long:.2f}, {twice:.2f}",
            None if quick or max(twice, long) < LEARNT else twice > long,
        ),
    ]
