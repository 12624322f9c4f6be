"""Position-wise feed-forward layers by name."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_one_of, check_positive
from seriatim.nn.moe import MixtureOfExperts
from seriatim.nn.pointwise import swiglu

__all__ = ["FEED_FORWARDS", "FeedForward", "GatedFeedForward", "PlainFeedForward", "build_feed_forward", "for_layers"]

FEED_FORWARDS = ("swiglu", "gelu", "moe", "none")
FeedForward: TypeAlias = str | Mapping[str, Any]  # a name, or {"feed_forward": name, option: value}


class GatedFeedForward(nn.Module):
    r"""SwiGLU: :math:`W_o (\mathrm{silu}(W_g x) \odot W_u x)`. Source: Shazeer, 2020, arXiv:2002.05202."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.inner = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        return self.out(swiglu(self.inner(x)))


class PlainFeedForward(nn.Module):
    r"""GELU between two layers: :math:`W_2\, \mathrm{gelu}(W_1 x + b_1) + b_2`. Source: arXiv:1606.08415."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.out = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) to (..., dim)."""
        return self.out(F.gelu(self.up(x)))


def build_feed_forward(spec: FeedForward, dim: int, expansion: float) -> nn.Module | None:
    """The layer of that name with about `expansion` x dim hidden units; None for "none".

    A gated layer has three matrices where a plain one has two, so its hidden width is two thirds as large: equal
    parameters. "moe" has experts of that width each; its options are those of :class:`MixtureOfExperts`.
    """
    given = {"feed_forward": spec} if isinstance(spec, str) else dict(spec)
    name = given.pop("feed_forward", None)
    check_one_of("feed_forward", name, FEED_FORWARDS)
    check_positive(expansion=expansion)
    hidden = max(8, round(expansion * dim * 2 / 3 / 8) * 8)
    known = list(inspect.signature(MixtureOfExperts).parameters)[2:] if name == "moe" else []
    for option in given:
        if option not in known:
            shown = f"its options are {', '.join(known)}" if known else "it has none"
            raise SeriatimError(f"feed_forward {name!r} has no option {option!r}; {shown}")
    if name == "none":
        return None
    if name == "gelu":
        return PlainFeedForward(dim, round(expansion * dim))
    return MixtureOfExperts(dim, hidden, **given) if name == "moe" else GatedFeedForward(dim, hidden)


def for_layers(given: FeedForward | Sequence[FeedForward], layers: int) -> list[FeedForward]:
    """One for each layer, from one for all or a list of as many. Raises SeriatimError where it is neither."""
    if isinstance(given, str | Mapping):
        return [given] * layers
    if not isinstance(given, Sequence) or len(given) != layers:
        raise SeriatimError(f"feed_forward is {given!r}; it must be one for all layers or a list of {layers}")
    return list(given)
