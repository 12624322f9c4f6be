r"""Write what follows a prompt, and fill in what is hidden in the prompt itself.

.. math:: L = \frac{w_1 L_{next} + w_2 L_{masked}}{w_1 + w_2} + \sum_i L_i

L_next is the mean loss of the tokens after the prompt, each told from all before it; L_masked that of the tokens of the
prompt that a mask replaced, each told at its own place; L_i are the auxiliary losses that the model's parts offer.

Source: Arora et al., 2024, arXiv:2407.05483, section 4 (JRT-RNN); weights and probability of its official code.
"""

from typing import Any

import torch
from torch import Tensor

from seriatim.core import taps
from seriatim.core.errors import SeriatimError, check_positive, check_size
from seriatim.core.mixer import Mixer
from seriatim.core.prompts import expect_prompt
from seriatim.core.state import State
from seriatim.nn.cross_entropy import cross_entropy

__all__ = ["prefix_lm"]

NO_TARGET = -100


def prefix_lm(
    model: Mixer,
    batch: Any,
    *,
    prompt: int,
    mask_id: int,
    masked: float = 0.15,
    next_weight: float = 1.0,
    masked_weight: float = 0.25,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, State]:
    """The loss in nats, and the state after the batch. Every row begins afresh, with a prompt.

    Args:
        model: a model of tokens, some of whose layers ask for a prompt (`prefix_linear`).
        batch: has tokens (B, T) int64, targets (B, T) int64, the next tokens, with -100 where nothing is to be
            predicted, and reset (B, T) bool or None; a reset inside of a row ends its prompt.
        prompt: M, tokens of the prompt; more than 0 and fewer than T.
        mask_id: the token that stands for a hidden one.
        masked: the probability that a token of the prompt is hidden.
        next_weight, masked_weight: w_1 and w_2.
        generator: of the draws.

    Returns:
        The loss, a float32 scalar, and the state, still attached to the graph.
    """
    check_size(prompt=prompt)
    check_positive(next_weight=next_weight, masked_weight=masked_weight)
    if not 0 < masked < 1:
        raise SeriatimError(f"masked is {masked}; it must be above 0 and below 1")
    tokens = batch.tokens
    if prompt >= tokens.size(1):
        raise SeriatimError(f"prompt is {prompt}; it must be below the batch's {tokens.size(1)} tokens")
    draws = torch.rand(len(tokens), prompt, generator=generator, device=None if generator is None else generator.device)
    hidden = draws.to(tokens.device) < masked
    shown = torch.cat([tokens[:, :prompt].masked_fill(hidden, mask_id), tokens[:, prompt:]], 1)
    start = expect_prompt(model.init_state(len(tokens)), prompt)
    reset = batch.reset
    if reset is not None:  # a row's first token begins it anyway
        reset = torch.cat([torch.zeros_like(reset[:, :1]), reset[:, 1:]], 1)
    with taps.collect(model, pattern="") as found:
        logits, state = model(shown, start, reset=reset)
    filled = _mean(logits[:, :prompt], tokens[:, :prompt].masked_fill(~hidden, NO_TARGET))
    following = _mean(logits[:, prompt:], batch.targets[:, prompt:])
    loss = (next_weight * following + masked_weight * filled) / (next_weight + masked_weight)
    return loss + found.loss(), state


def _mean(logits: Tensor, targets: Tensor) -> Tensor:
    nats = cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    return nats / (targets != NO_TARGET).sum().clamp(min=1)
