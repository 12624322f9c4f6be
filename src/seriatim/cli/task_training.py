"""Puts a model, a task and the training loop together."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from seriatim.cli.options import build_model
from seriatim.cli.task_options import Lengths
from seriatim.core.mixer import Mixer
from seriatim.data.task_batches import TaskBatches, generator
from seriatim.objectives.next_token import next_token
from seriatim.tasks.base import Task
from seriatim.train.accuracy import accuracy
from seriatim.train.loop import Result, fit
from seriatim.train.run_folder import RunFolder
from seriatim.train.settings import TrainSettings

__all__ = ["build_for_task", "measure", "parameters_of", "train_on_task"]


def build_for_task(task: Task, options: Mapping[str, Any]) -> Mixer:
    """The model that reads the task's sequences: a language model of tokens, a classifier of features."""
    if task.channels:
        return build_model(options, "classifier", channels=task.channels, classes=task.vocab_size)
    return build_model(options, vocab_size=task.vocab_size)


def parameters_of(task: Task, options: Mapping[str, Any]) -> int:
    """How many parameters a model of these options has."""
    return sum(parameter.numel() for parameter in build_for_task(task, options).parameters())


def train_on_task(
    model: Mixer, task: Task, lengths: Lengths, settings: TrainSettings, folder: RunFolder, display: str = "auto"
) -> Result:
    """Trains the model; evaluations are of the longest sequences of training."""
    batches = TaskBatches(task, settings.batch, lengths.shortest, lengths.longest, settings.seed)

    def evaluation(model: nn.Module) -> dict[str, float]:
        (found,) = measure(model, task, [lengths.longest], lengths.sequences, settings.seed)
        return {"error": 1 - found["accuracy"]}

    return fit(model, next_token, batches, settings, folder, evaluation, display)


def measure(model: nn.Module, task: Task, lengths: Sequence[int], sequences: int, seed: int) -> list[dict[str, Any]]:
    """Accuracy on sequences that are no batch of the training, the same ones for the same seed."""
    return accuracy(model, task.held_out(), lengths, sequences, lambda length: generator(seed, 1, length))
