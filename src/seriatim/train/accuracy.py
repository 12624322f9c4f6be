"""How many answers of a task a model gives right, by length and by difficulty."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["accuracy"]

DISTINCT = 10  # levels that are told apart; where there are more, 1, 2-3, 4-7, 8-15, ... are


class Task(Protocol):
    """Makes sequences and says which predictions are right (`seriatim.tasks`)."""

    vocab_size: int

    def sample(self, batch: int, length: int, generator: torch.Generator | None = None) -> Any: ...
    def right(self, predictions: Tensor, batch: Any) -> Tensor: ...


@torch.no_grad()
def accuracy(
    model: nn.Module,
    task: Task,
    lengths: Sequence[int],
    sequences: int,
    generator: Callable[[int], torch.Generator],
    batch: int = 32,
) -> list[dict[str, Any]]:
    """Answers every question of some sequences by the most likely token.

    Args:
        model: maps tokens (B, T) to logits (B, T, vocab) and a state. It is in evaluation mode meanwhile.
        task: makes the sequences.
        lengths: of the sequences, one after another.
        sequences: how many of each length.
        generator: of the sequences of a length.
        batch: how many are read side by side.

    Returns:
        For each length: answers (how many were asked), accuracy, whole (the share of sequences with no mistake),
        baseline (the accuracy of the best answer that is always the same), and levels: the same by difficulty, from
        least to most, as {from, to, answers, accuracy}.
    """
    training = model.training
    model.eval()
    try:
        found = [_count(model, task, length, sequences, generator(length), batch) for length in lengths]
    finally:
        model.train(training)
    ranges = _ranges(level for counts in found for level in counts["asked"])
    return [_figures(length, counts, ranges) for length, counts in zip(lengths, found, strict=True)]


def _count(
    model: nn.Module, task: Task, length: int, sequences: int, generator: torch.Generator, batch: int
) -> dict[str, Any]:
    device = next(model.parameters()).device
    asked, right = Counter[int](), Counter[int]()
    constant = torch.zeros(task.vocab_size, dtype=torch.long)
    whole, read = 0, 0
    while read < sequences:
        questions = task.sample(min(batch, sequences - read), length, generator)
        logits, _ = model(questions.tokens.to(device))
        correct = task.right(logits.argmax(-1).cpu(), questions)
        asked.update(questions.levels[questions.scored].tolist())
        right.update(questions.levels[correct].tolist())
        whole += int((correct == questions.scored).all(1).sum())
        constant += _constant(questions, task.vocab_size)
        read += len(correct)
    return {"asked": asked, "right": right, "whole": whole / sequences, "constant": int(constant.max())}


def _constant(questions: Any, vocab_size: int) -> Tensor:
    """(vocab,) how many answers would be right if that token were always said."""
    if questions.valid is not None:
        return (questions.valid & questions.scored[..., None]).sum((0, 1))
    return questions.targets[questions.scored].bincount(minlength=vocab_size)


def _figures(length: int, counts: Mapping[str, Any], ranges: Sequence[tuple[int, int]]) -> dict[str, Any]:
    asked, right = counts["asked"], counts["right"]
    levels = []
    for least, most in ranges:
        inside = [level for level in asked if least <= level <= most]
        answers = sum(asked[level] for level in inside)
        if answers:
            share = sum(right[level] for level in inside) / answers
            levels.append({"from": least, "to": most, "answers": answers, "accuracy": share})
    total = asked.total()
    return {
        "length": length,
        "answers": total,
        "accuracy": right.total() / max(total, 1),
        "whole": counts["whole"],
        "baseline": counts["constant"] / max(total, 1),
        "levels": levels,
    }


def _ranges(levels: Iterable[int]) -> list[tuple[int, int]]:
    """The levels, each alone or together with those of the same number of binary digits."""
    distinct = sorted(set(levels))
    if len(distinct) <= DISTINCT:
        return [(level, level) for level in distinct]
    digits = sorted({level.bit_length() for level in distinct})
    return [(2**count // 2, max(2**count - 1, 0)) for count in digits]
