"""Small models trained on a task, for claims to compare."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from seriatim.core.build import Spec
from seriatim.data.task_batches import TaskBatches, generator
from seriatim.models.language_model import LanguageModel
from seriatim.objectives.next_token import next_token
from seriatim.tasks.base import Task
from seriatim.train.accuracy import accuracy

__all__ = ["answers", "parameters", "trained"]

WARMUP = 0.1  # of the steps


def trained(
    task: Task,
    layers: Sequence[Spec],
    *,
    dim: int = 32,
    steps: int = 400,
    batch: int = 64,
    lengths: tuple[int, int] = (3, 40),
    rate: float = 3e-3,
    decay: float = 0.1,
    seed: int = 0,
    **options: Any,
) -> LanguageModel:
    """A language model after some steps of AdamW: the rate rises over a tenth of them, then falls as a cosine.

    options: of the model.
    """
    torch.manual_seed(seed)
    model = LanguageModel(task.vocab_size, dim=dim, layers=list(layers), **options)
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, steps))
    for _, batch_of_task in zip(range(steps), TaskBatches(task, batch, *lengths, seed), strict=False):
        loss, _ = next_token(model, batch_of_task)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def answers(model: nn.Module, task: Task, length: int, sequences: int = 128, seed: int = 0) -> float:
    """The share of right answers in sequences of a length that the training did not see."""
    (found,) = accuracy(model, task.held_out(), [length], sequences, lambda length: generator(seed, 1, length))
    return float(found["accuracy"])


def parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def _rate(step: int, steps: int) -> float:
    begin = max(1, round(WARMUP * steps))
    if step < begin:
        return (step + 1) / begin
    return 0.5 * (1 + math.cos(math.pi * (step - begin) / max(1, steps - begin)))
