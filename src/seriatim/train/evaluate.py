r"""Bits per byte: how many bits a model needs to write a text, for each byte of it.

.. math:: \frac{-\sum_t \log_2 p(\text{target}_t \mid \text{what came before})}{\text{bytes of text}}

The boundaries that end documents are predicted too and their bits count; they add no bytes. Tokens of any tokenizer,
and compressors such as gzip, can be compared by it.
"""

from collections.abc import Iterator
from math import log
from typing import Any, Protocol

import torch
from torch import nn

from seriatim.core.errors import SeriatimError
from seriatim.nn.cross_entropy import cross_entropy

__all__ = ["EvaluationBatches", "evaluate"]


class EvaluationBatches(Protocol):
    """Batches that hold every token of a text once, in order (`seriatim.data.evaluation`)."""

    bytes: int
    overlap: int

    def __iter__(self) -> Iterator[Any]: ...


@torch.no_grad()
def evaluate(model: nn.Module, batches: EvaluationBatches, carry: bool | None = None) -> dict[str, float]:
    """Reads a text and says how well the model predicts it.

    Args:
        model: maps tokens (B, T) and a state to logits (B, T, vocab) and a state. It is put into evaluation mode
        meanwhile.
        batches: the text.
        carry: whether the state goes from each batch to the next. None: where the model's state is constant in size and
            the batches do not overlap.

    Returns:
        bits_per_byte and bits_per_token.

    Raises:
        SeriatimError: carry is true and the batches overlap, so that the model would read tokens twice.
    """
    if carry and batches.overlap:
        raise SeriatimError(f"carry is true and the batches overlap by {batches.overlap} tokens; overlap must be 0")
    if carry is None:
        carry = getattr(model, "constant_state", True) and not batches.overlap
    device = next(model.parameters()).device
    nats = torch.zeros((), dtype=torch.float64, device=device)
    targets = 0
    state, training = None, model.training
    model.eval()
    try:
        for tokens, target, reset in batches:
            logits, after = model(tokens.to(device), state, reset=None if reset is None else reset.to(device))
            state = after if carry else None
            nats += cross_entropy(logits.flatten(0, 1).float(), target.to(device).flatten()).double()
            targets += int((target != -100).sum())
    finally:
        model.train(training)
    bits = nats.item() / log(2)
    return {"bits_per_byte": bits / batches.bytes, "bits_per_token": bits / targets}
