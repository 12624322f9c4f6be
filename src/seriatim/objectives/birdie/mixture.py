"""Batches of several objectives, and their loss."""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.core.mixer import Mixer
from seriatim.core.prompts import asks_for_prompt, expect_prompt
from seriatim.core.state import State
from seriatim.objectives.birdie.denoising import Denoising, Masking
from seriatim.objectives.birdie.special import SpecialTokens
from seriatim.objectives.next_token import next_token

__all__ = ["DenoisingBatch", "denoising_loss", "make_batch", "objective_losses"]

NO_TARGET = -100


class DenoisingBatch(NamedTuple):
    """Questions and answers side by side, padded on the right. Every row begins afresh.

    tokens: (B, T) int64: the question, the token that says begin, the answer but for its last token.
    targets: (B, T) int64: the answer from that token on, -100 elsewhere.
    reset: None.
    prompt: (B,) int64: tokens of the question and the one that says begin; 0 where there is none.
    """

    tokens: Tensor
    targets: Tensor
    reset: Tensor | None
    prompt: Tensor


def make_batch(
    windows: Tensor,
    objectives: Sequence[Denoising],
    special: SpecialTokens,
    weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> DenoisingBatch:
    """Makes a question and an answer of each window, after an objective drawn for it.

    Args:
        windows: (B, T) int64 text; an objective takes the first `length` tokens.
        objectives: those there are.
        special: the tokens beside the text's.
        weights: (objectives,), how often each is drawn; None is equally often.
        generator: of all draws.

    Raises:
        SeriatimError: windows are shorter than an objective's length, or spans are more than there are masks.
    """
    for objective in objectives:
        if windows.size(1) < objective.length:
            raise SeriatimError(
                f"windows have {windows.size(1)} tokens; {objective} takes {objective.length}, give it longer ones"
            )
        if isinstance(objective, Masking) and objective.spans > special.masks:
            raise SeriatimError(f"masks is {special.masks}; {objective} hides {objective.spans} spans")
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    chosen = random.choices(objectives, None if weights is None else weights.tolist(), k=len(windows))
    rows = [
        _row(objective, window[: objective.length], special, random)
        for objective, window in zip(chosen, windows.tolist(), strict=True)
    ]
    longest = max((len(tokens) for tokens, _, _ in rows), default=0)
    tokens = [tokens + [0] * (longest - len(tokens)) for tokens, _, _ in rows]
    targets = [targets + [NO_TARGET] * (longest - len(targets)) for _, targets, _ in rows]
    prompts = [prompt for _, _, prompt in rows]
    made = [torch.tensor(part, dtype=torch.long, device=windows.device) for part in (tokens, targets, prompts)]
    return DenoisingBatch(made[0].view(len(rows), longest), made[1].view(len(rows), longest), None, made[2])


def _row(
    objective: Denoising, text: list[int], special: SpecialTokens, random: Random
) -> tuple[list[int], list[int], int]:
    question, answer = objective.pair(text, special, random)
    if not question:
        return answer[:-1], answer[1:], 0
    if objective.paradigm is not None:  # before or behind the question, as often
        place = random.choice((0, len(question)))
        question.insert(place, special.paradigm(objective.paradigm))
    tokens = [*question, special.mark("begin"), *answer[:-1]]
    return tokens, [NO_TARGET] * len(question) + answer, len(question) + 1


def denoising_loss(model: Mixer, batch: DenoisingBatch, state: State | None = None) -> tuple[Tensor, State]:
    """The mean loss in nats of the answers' tokens, and the state after the batch.

    The prompts are told to those layers that ask (`prefix_bidirectional`, `prefix_linear`); a causal model needs none.

    Args:
        model: a model of tokens.
        batch: of `make_batch`.
        state: not used, since every row begins afresh.
    """
    start = model.init_state(len(batch.tokens))
    return next_token(model, batch, expect_prompt(start, batch.prompt) if asks_for_prompt(start) else start)


@torch.no_grad()
def objective_losses(
    model: Mixer, windows: Tensor, objectives: Sequence[Denoising], special: SpecialTokens, seed: int = 0
) -> Tensor:
    """The loss of each objective by itself, (objectives,), on the same windows and draws whenever it is called."""
    losses = []
    for objective in objectives:
        batch = make_batch(windows, [objective], special, generator=torch.Generator().manual_seed(seed))
        losses.append(denoising_loss(model, batch)[0])
    return torch.stack(losses)
