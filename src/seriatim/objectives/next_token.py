r"""Predict the next token.

.. math:: L = -\frac{1}{N} \sum_{b,t} \log p(\text{target}_{b,t} \mid \text{tokens}_{b, \le t}) + \sum_i L_i

over the N targets that are not -100; L_i are the auxiliary losses that the model's parts offer (`seriatim.core.taps`).
"""

from typing import Any

from torch import Tensor, nn

from seriatim.core import taps
from seriatim.core.state import State
from seriatim.nn.cross_entropy import cross_entropy

__all__ = ["next_token"]


def next_token(model: nn.Module, batch: Any, state: State | None = None) -> tuple[Tensor, State]:
    """The mean loss in nats for each target, and the state after the batch.

    Args:
        model: maps tokens (B, T) and a state to logits (B, T, vocab) and a state.
        batch: has tokens (B, T) int64, targets (B, T) int64 with -100 where nothing is to be predicted, and reset (B,
            T) bool or None.
        state: what the batch before returned where this one goes on from it; None begins afresh.

    Returns:
        The loss, a float32 scalar (0 where no target is to be predicted), and the state, still attached to the graph.
    """
    with taps.collect(model, pattern="") as found:
        logits, state = model(batch.tokens, state, reset=batch.reset)
    nats = cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten())
    targets = (batch.targets != -100).sum().clamp(min=1)
    return nats / targets + found.loss(), state
