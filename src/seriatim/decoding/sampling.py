"""From logits to a token: small pure functions on logits (B, vocab) that compose in any order.

A filter returns logits with -inf where a token is ruled out; at least one token of each row always stays. The
distribution that is drawn from is softmax(logits).
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_positive

__all__ = ["draw", "greedy", "min_p", "repetition_penalty", "temperature", "top_k", "top_p"]


def greedy(logits: Float[Tensor, "B vocab"]) -> Int[Tensor, " B"]:
    """The most probable token of each row; the lowest id among equals."""
    return logits.argmax(-1)


def draw(logits: Float[Tensor, "B vocab"], generator: torch.Generator | None = None) -> Int[Tensor, " B"]:
    """One token of each row from softmax(logits), on the generator's device.

    The token that comes first where each waits for an exponential time at the rate of its probability: what
    `torch.multinomial` does, without its checks.
    """
    logits = logits if generator is None else logits.to(generator.device)
    waits = torch.empty_like(logits).exponential_(generator=generator)
    return (logits.softmax(-1) / waits).argmax(-1)


def temperature(logits: Float[Tensor, "B vocab"], value: float) -> Float[Tensor, "B vocab"]:
    """logits / value: below 1 the probable becomes more so, above 1 less; towards 0 this is `greedy`.

    Source: Ackley, Hinton and Sejnowski, 1985.
    """
    check_positive(temperature=value)
    return logits / value


def top_k(logits: Float[Tensor, "B vocab"], k: int) -> Float[Tensor, "B vocab"]:
    """Keeps the k most probable tokens, and all that equal the last of them; k above the vocabulary keeps everything.

    Source: Fan, Lewis and Dauphin, 2018, arXiv:1805.04833.
    """
    check_positive(top_k=k)
    smallest_kept = logits.topk(min(k, logits.size(-1)), -1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def top_p(logits: Float[Tensor, "B vocab"], p: float) -> Float[Tensor, "B vocab"]:
    """Keeps the smallest set of the most probable tokens whose probabilities sum to at least p (0 < p <= 1).

    A token stays where the tokens before it, in descending order of probability, sum to less than p. Among equals the
    lower id comes first.

    Source: Holtzman et al., 2019, arXiv:1904.09751.
    """
    _check_fraction("top_p", p)
    if p == 1:
        return logits  # rounding in the sum must not cut the tail
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    before = F.pad(ordered.softmax(-1).cumsum(-1)[..., :-1], (1, 0))
    dropped = torch.zeros_like(order, dtype=torch.bool).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, -math.inf)


def min_p(logits: Float[Tensor, "B vocab"], p: float) -> Float[Tensor, "B vocab"]:
    """Keeps the tokens at least p times as probable as the most probable one (0 < p <= 1).

    P(x) >= p max P is logit(x) >= max logit + log p: no softmax is needed.

    Source: Nguyen et al., 2024, arXiv:2407.01082.
    """
    _check_fraction("min_p", p)
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def repetition_penalty(
    logits: Float[Tensor, "B vocab"], seen: Bool[Tensor, "B vocab"], penalty: float
) -> Float[Tensor, "B vocab"]:
    """Makes the tokens in `seen` less probable: a positive logit is divided by the penalty, a negative one multiplied.

    `seen` is a mask over the vocabulary, so that its size does not depend on how much was read.

    Source: Keskar et al., 2019 (CTRL), arXiv:1909.05858, section 4.1; multiplying the negative ones keeps a penalty
    above 1 a penalty whatever the sign, as every later implementation does.
    """
    check_positive(repetition_penalty=penalty)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def _check_fraction(argument: str, value: float) -> None:
    if not 0 < value <= 1:
        raise SeriatimError(f"{argument} is {value}; it must be above 0 and at most 1")
