"""Small models trained on a task, for claims to compare."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seriatim.core.build import Spec
from seriatim.data.batches import PackedBatches
from seriatim.data.corpus import load_corpus
from seriatim.data.evaluation import EvaluationBatches
from seriatim.data.task_batches import TaskBatches, generator
from seriatim.data.tokenizer import ByteTokenizer
from seriatim.models.language_model import LanguageModel
from seriatim.objectives.next_token import next_token
from seriatim.tasks.base import Task
from seriatim.train.accuracy import accuracy
from seriatim.train.evaluate import evaluate

__all__ = [
    "answers",
    "bits_per_byte",
    "by_level",
    "optimise",
    "parameters",
    "rate_of",
    "read_text",
    "seconds",
    "spread",
    "trained",
]

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
    objective: Callable[[LanguageModel, Any], tuple[Tensor, Any]] = next_token,
    **options: Any,
) -> LanguageModel:
    """A language model that was trained on a task (`optimise`).

    objective: gives the loss, first of two, of a model and a batch.
    options: of the model.
    """
    torch.manual_seed(seed)
    model = LanguageModel(task.vocab_size, dim=dim, layers=list(layers), **options)
    batches = TaskBatches(task, batch, *lengths, seed)
    optimise(model, lambda: objective(model, next(batches))[0], steps=steps, rate=rate, decay=decay)
    return model


def optimise(
    model: nn.Module, loss: Callable[[], Tensor], *, steps: int, rate: float = 3e-3, decay: float = 0.1
) -> None:
    """Some steps of AdamW: the rate rises over a tenth of them, then falls as a cosine.

    loss: of the next batch.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_of(step, steps))
    for _ in range(steps):
        found = loss()
        optimiser.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()


def answers(model: nn.Module, task: Task, length: int, sequences: int = 128, seed: int = 0) -> float:
    """The share of right answers in sequences of a length that the training did not see."""
    (found,) = accuracy(model, task.held_out(), [length], sequences, lambda length: generator(seed, 1, length))
    return float(found["accuracy"])


def by_level(model: nn.Module, task: Task, length: int, sequences: int = 128, seed: int = 0) -> dict[int, float]:
    """The same for each difficulty of the task, by its least level."""
    (found,) = accuracy(model, task, [length], sequences, lambda length: generator(seed, 1, length))
    return {level["from"]: level["accuracy"] for level in found["levels"]}


def read_text(
    model: nn.Module, *, steps: int, batch: int, window: int, rate: float = 3e-3, decay: float = 0.1, seed: int = 0
) -> None:
    """Trains a model of 257 tokens (`optimise`) on the standard library's source, byte by byte."""
    batches = iter(PackedBatches(load_corpus("stdlib").train, ByteTokenizer(), batch, window, seed))
    optimise(model, lambda: next_token(model, next(batches))[0], steps=steps, rate=rate, decay=decay)


def bits_per_byte(model: nn.Module, tokens: int, carry: bool | None = None) -> float:
    """Of so much text of the standard library that `read_text` did not read. carry: as of `evaluate`."""
    held_out = EvaluationBatches(load_corpus("stdlib").validation, ByteTokenizer(), 16, 256, tokens)
    return evaluate(model, held_out, carry)["bits_per_token"]


def seconds(work: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """The median time of some work, once it is warm."""
    times = []
    for _ in range(repeats + 1):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times[1:])


def spread(values: Sequence[float]) -> str:
    """The mean of some seeds' figures, and the least and the most of them."""
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def parameters(model: nn.Module) -> int:
    """How many numbers are learned."""
    return sum(parameter.numel() for parameter in model.parameters())


def rate_of(step: int, steps: int) -> float:
    """The share of the highest rate that a step has."""
    begin = max(1, round(WARMUP * steps))
    if step < begin:
        return (step + 1) / begin
    return 0.5 * (1 + math.cos(math.pi * (step - begin) / max(1, steps - begin)))
