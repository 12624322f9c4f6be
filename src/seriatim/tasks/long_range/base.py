"""What these tasks share: examples as series of features, with one question at the last element of each."""

import copy
from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.base import IGNORED, Batch, Task

__all__ = ["Examples", "SeriesTask", "StoredTask"]


class Examples(NamedTuple):
    """values (B, T, channels) float32, zeros after the end; lengths, labels and levels (B,) int64."""

    values: Tensor
    lengths: Tensor
    labels: Tensor
    levels: Tensor


class SeriesTask(Task):
    """Series of features of which a class is asked after the last element.

    A task writes `examples` and sets `channels`, `vocab_size` (classes) and `length`.
    """

    length: int

    @abstractmethod
    def examples(self, batch: int, generator: torch.Generator | None) -> Examples:
        """Series drawn by the generator alone."""

    def sample(self, batch: int, length: int, generator: torch.Generator | None = None) -> Batch:
        check_size(batch=batch, length=length)
        if length != self.length:
            name = type(self).__name__
            raise SeriatimError(f"length is {length}; all sequences of {name} have {self.length} elements")
        found = self.examples(batch, generator)
        last = (torch.arange(batch), found.lengths - 1)
        targets = torch.full(found.values.shape[:2], IGNORED)
        targets[last] = found.labels
        levels = torch.zeros_like(targets)
        levels[last] = found.levels
        return Batch(found.values, targets, None, levels, None)


class StoredTask(SeriesTask):
    """Examples that are drawn from a fixed collection, of which some are for testing only.

    A task writes `load`.
    """

    is_held_out = False
    _stored: dict[bool, Examples] | None = None

    @abstractmethod
    def load(self) -> tuple[Examples, Examples]:
        """The examples to train on and those held out."""

    def held_out(self) -> "StoredTask":
        self._part(True)
        task = copy.copy(self)
        task.is_held_out = True
        return task

    def examples(self, batch: int, generator: torch.Generator | None) -> Examples:
        """Each one as likely as another."""
        stored = self._part(self.is_held_out)
        chosen = torch.randint(len(stored.labels), (batch,), generator=generator)
        return Examples(*(part[chosen] for part in stored))

    def count(self) -> int:
        """How many examples there are."""
        return len(self._part(self.is_held_out).labels)

    def _part(self, held_out: bool) -> Examples:
        if self._stored is None:
            train, test = self.load()
            self._stored = {False: train, True: test}
        return self._stored[held_out]
