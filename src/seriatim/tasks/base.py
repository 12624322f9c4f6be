"""What every task is: sequences made from a seed, questions in them, and which answers are right."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from random import Random
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_size

__all__ = ["IGNORED", "Batch", "Row", "Task", "TokenTask", "powers_of_two"]

IGNORED = -100  # a target where nothing is asked, as in torch's cross entropy


class Row(NamedTuple):
    """One sequence, as lists of equal length.

    targets: what is to be said after each token, -100 where nothing is asked.
    levels: how difficult each answer is, in the task's own measure.
    valid: every answer that counts as right, where there may be others than the target.
    """

    tokens: list[int]
    targets: list[int]
    levels: list[int]
    valid: Sequence[Collection[int]] | None = None


class Batch(NamedTuple):
    """Sequences for a model, padded on the right with zeros where nothing is asked.

    tokens: (B, T) int64, or features (B, T, channels) float32. targets, levels: (B, T) int64, as in Row. reset: None,
    since each row begins afresh anyway. valid: (B, T, answers) bool, or None where only the target is right.
    """

    tokens: Tensor
    targets: Tensor
    reset: Tensor | None
    levels: Tensor
    valid: Tensor | None

    @property
    def scored(self) -> Tensor:
        """(B, T) bool, the positions where an answer is asked."""
        return self.targets != IGNORED


class Task(ABC):
    """A task makes sequences from a seed, and says which predictions are right.

    Its constructor keeps each argument under the argument's name.

    Attributes:
        difficulty: what its levels count, such as "pairs".
        vocab_size: answers run from 0 to vocab_size - 1, and so do tokens.
        channels: 0 where sequences are tokens; else the features of each element.
        shortest: the shortest sequence that it can make.
        length: of every sequence, where all are of one length.
    """

    difficulty: ClassVar[str]
    vocab_size: int
    channels: int = 0
    shortest: int = 1
    length: int | None = None

    @abstractmethod
    def sample(self, batch: int, length: int, generator: torch.Generator | None = None) -> Batch:
        """Sequences side by side. The generator alone decides which; None is torch's own.

        Raises:
            SeriatimError: the task has no sequences of this length.
        """

    def held_out(self) -> "Task":
        """The task whose sequences are for testing: this one, where every sequence is new."""
        return self

    def right(self, predictions: Tensor, batch: Batch) -> Tensor:
        """(B, T) bool: where an answer is asked and the prediction (B, T) is one that counts."""
        if batch.valid is None:
            return batch.scored & (predictions == batch.targets)
        return batch.scored & batch.valid.gather(2, predictions[..., None]).squeeze(2)


class TokenTask(Task):
    """Sequences of tokens, of any length. A task writes `row` and sets `vocab_size`."""

    @abstractmethod
    def row(self, length: int, random: Random) -> Row:
        """A sequence of at most `length` tokens, and nearly that many."""

    def sample(self, batch: int, length: int, generator: torch.Generator | None = None) -> Batch:
        check_size(batch=batch, length=length)
        if length < self.shortest:
            raise SeriatimError(f"length is {length}; {type(self).__name__} needs at least {self.shortest} tokens")
        random = Random(int(torch.randint(2**62, (), generator=generator)))
        rows = [self.row(length, random) for _ in range(batch)]
        valid = None
        if rows[0].valid is not None:
            valid = torch.zeros(batch, length, self.vocab_size, dtype=torch.bool)
            lists = [
                (b * length + t, answers) for b, row in enumerate(rows) for t, answers in enumerate(row.valid or ())
            ]
            flat = [place * self.vocab_size + answer for place, answers in lists for answer in answers]
            valid.view(-1)[torch.tensor(flat)] = True
        return Batch(
            _padded([row.tokens for row in rows], length, 0),
            _padded([row.targets for row in rows], length, IGNORED),
            None,
            _padded([row.levels for row in rows], length, 0),
            valid,
        )


def powers_of_two(least: int, most: int) -> list[int]:
    """1, 2, 4, ... from `least` to `most`, or `most` alone where none is between."""
    return [2**power for power in range(most.bit_length()) if least <= 2**power <= most] or [most]


def _padded(rows: list[list[int]], length: int, fill: int) -> Tensor:
    return torch.tensor([row + [fill] * (length - len(row)) for row in rows])
