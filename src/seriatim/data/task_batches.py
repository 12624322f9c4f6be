"""Endless batches of a synthetic task."""

import hashlib
from typing import Any, ClassVar, Protocol

import torch

from seriatim.core.build import spec
from seriatim.core.errors import SeriatimError, check_size

__all__ = ["Task", "TaskBatches", "generator"]


class Task(Protocol):
    """What makes sequences (`seriatim.tasks`)."""

    def sample(self, batch: int, length: int, generator: torch.Generator | None = None) -> Any: ...


class TaskBatches:
    """An endless iterator of a task's batches. Its position is the number of batches read, so a resume costs nothing.

    Args:
        task: makes the sequences.
        batch: rows.
        shortest, longest: each batch has one length, drawn evenly between these two.
        seed: of everything that is drawn.

    Raises:
        SeriatimError: the lengths are in the wrong order.
    """

    carries: ClassVar[bool] = False

    def __init__(self, task: Task, batch: int, shortest: int, longest: int, seed: int = 0):
        check_size(batch=batch, shortest=shortest, longest=longest)
        if shortest > longest:
            raise SeriatimError(f"shortest is {shortest}; it must be at most longest, which is {longest}")
        self.task, self.batch, self.shortest, self.longest, self.seed = task, batch, shortest, longest, seed
        self.batches_read = 0

    def __iter__(self) -> "TaskBatches":
        return self

    def __next__(self) -> Any:
        source = generator(self.seed, 0, self.batches_read)
        self.batches_read += 1
        length = int(torch.randint(self.shortest, self.longest + 1, (), generator=source))
        return self.task.sample(self.batch, length, source)

    def state_dict(self) -> dict[str, Any]:
        """The position, and what the batches are, as plain data."""
        made = [spec(self.task), self.batch, self.shortest, self.longest, self.seed]
        return {"batches_read": self.batches_read, "made": made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position. Raises SeriatimError where the task or a setting is not what it was."""
        if state.get("made") != self.state_dict()["made"]:
            raise SeriatimError("the task is not what the run was started with, so it cannot be resumed")
        self.batches_read = state["batches_read"]


def generator(*numbers: int) -> torch.Generator:
    """A generator of its own for every combination of whole numbers."""
    digest = hashlib.sha256(repr(numbers).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))
