r"""A running maximum that decays: the stabiliser of recurrences whose gates are exponentials.

.. math:: m_t = \max(m_{t-1} + g_t, s_t)

is the largest exponent in the sum :math:`\sum_i e^{s_i + g_{i+1} + \dots + g_t}`, which would overflow without it.

Dimensions: B batch, T time, F any number of feature dimensions.

The parallel path doubles: the maxima over 1, 2, 4, ... tokens that end at each token. Every exponent is a sum of the
log decays that it spans, never a difference of two running sums, so that any log decay is right, -inf included, and
with it resets. Source: Hillis and Steele, 1986, "Data parallel algorithms".
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seriatim.ops.backend import choose
from seriatim.ops.checks import check_reset, check_tensors
from seriatim.ops.precision import widen

__all__ = ["max_scan", "reference"]

_NONE = float("-inf")


def max_scan(
    log_decay: Float[Tensor, "B T *F"],
    scores: Float[Tensor, "B T *F"],
    *,
    state: Float[Tensor, "B *F"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T *F"], Float[Tensor, "B *F"]]:
    """m = max(m + log_decay, scores).

    Args:
        log_decay: (B, T, *F), of any size, -inf included, not inf.
        scores: (B, T, *F); -inf is a token that is not there.
        state: (B, *F), what an earlier call returned; None is -inf, nothing read.
        reset: (B, T) bool, m is -inf before this token.

    Returns:
        m (B, T, *F) and the state after the last token, in float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    check_tensors(
        {
            "scores": (scores, "batch time *features"),
            "log_decay": (log_decay, "batch time *features"),
            "state": (state, "batch *features?"),
        }
    )
    check_reset(reset, scores)
    log_decay, scores, state = widen(log_decay, scores, state)
    if state is None:
        state = torch.full_like(scores[:, :1].sum(1), _NONE)
    scan = choose({"reference": reference, "torch": _doubling}, scores)
    return scan(log_decay, scores, state=state, reset=reset)


def reference(
    log_decay: Float[Tensor, "B T *F"],
    scores: Float[Tensor, "B T *F"],
    *,
    state: Float[Tensor, "B *F"],
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T *F"], Float[Tensor, "B *F"]]:
    """The equation, token by token."""
    outputs = []
    for t in range(scores.size(1)):
        if reset is not None:
            state = torch.where(reset[:, t].view(-1, *[1] * (state.dim() - 1)), _NONE, state)
        state = torch.maximum(state + log_decay[:, t], scores[:, t])
        outputs.append(state)
    return (torch.stack(outputs, 1) if outputs else scores), state


def _doubling(
    log_decay: Tensor, scores: Tensor, *, state: Tensor, reset: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same by stretches of tokens that double in length."""
    time = scores.size(1)
    if time == 0:
        return scores, state
    if reset is not None:
        log_decay = log_decay.masked_fill(reset.view(*reset.shape, *[1] * (scores.dim() - 2)), _NONE)
    first = torch.maximum(state + log_decay[:, 0], scores[:, 0])
    if time == 1:
        return first.unsqueeze(1), first
    m, span = torch.cat([first.unsqueeze(1), scores[:, 1:]], 1), 1
    while span < time:
        later = torch.maximum(m[:, :-span] + log_decay[:, span:], m[:, span:])
        m = torch.cat([m[:, :span], later], 1)
        log_decay = torch.cat([log_decay[:, :span], log_decay[:, span:] + log_decay[:, :-span]], 1)
        span *= 2
    # Cloned: a view would keep the maxima of all tokens in memory for as long as the state lives.
    return m, m[:, -1].clone()
