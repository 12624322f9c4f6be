"""What a training run consists of while it runs; a checkpoint holds all of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError
from seriatim.core.state import State

__all__ = ["Batches", "Objective", "Progress", "Training", "TrainingError"]

Objective: TypeAlias = Callable[[nn.Module, Any, State | None], tuple[Tensor, State]]


class TrainingError(SeriatimError):
    """Training cannot go on; the message says at which step, and which checkpoint is the last good one."""


class Batches(Protocol):
    """A source of batches (`seriatim.data.batches`): NamedTuples of tensors, the first of them (B, T, ...).

    Its state is plain data, or tensors, by name.
    """

    @property
    def carries(self) -> bool: ...

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Progress:
    """How far the run is, as plain data.

    step: updates made. tokens: read in them. seconds: spent on them, evaluations and checkpoints not counted.
    loss_sum, loss_count, logged_tokens, logged_seconds: since (or at) the last line of the log.
    validation, best, best_step, worse: the last evaluation, the best figure, its step, and evaluations since.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    loss_count: int = 0
    logged_tokens: int = 0
    logged_seconds: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)
    best: float | None = None
    best_step: int = 0
    worse: int = 0


@dataclass
class Training:
    """The parts of a run. state: what the model carries from the last batch to the next; None before the first."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    batches: Batches
    state: State | None = None
    progress: Progress = field(default_factory=Progress)
