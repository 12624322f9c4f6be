"""A classifier of sequences of features over any stack of mixers."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.backbones.stack import Stack
from seriatim.core import ragged
from seriatim.core.build import Spec
from seriatim.core.errors import check_one_of, check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.nn.feed_forward import FeedForward
from seriatim.nn.norms import build_norm

__all__ = ["Classifier", "ClassifierState"]

POOLS = ("mean", "last")


class ClassifierState(NamedTuple):
    """What is carried from segment to segment."""

    stack: State
    total: Tensor  # (B, dim): the sum of what was read
    length: Tensor  # (B,) int64: how many elements that was


class Classifier(Mixer):
    r"""Says after every element which class the sequence belongs to: a linear layer, a stack of mixers, a mean, a head.

    .. math:: h = \mathrm{norm}(\mathrm{stack}(W_{in} x + b)), \quad
              \mathrm{logits}_t = W \frac{1}{t} \sum_{s \le t} h_s + c

    It obeys the contract on features: `(x (B, T, channels), state) -> (logits (B, T, classes), state)`. The answer for
    a whole sequence stands at its last element; the ones before are what it would have said had it ended there.

    Args:
        channels: features of an element.
        classes: number of classes.
        dim: features of every layer.
        layers: a spec for each mixer, such as `["s4d", "s4d"]`.
        norm: "rms" or "layer".
        feed_forward: "swiglu", "gelu", "moe" or "none", or a list with one for each layer; "moe" also as a mapping with
            options (:class:`seriatim.nn.moe.MixtureOfExperts`).
        expansion: hidden units of a feed-forward layer as a multiple of dim (a gated one has two thirds of it).
        dropout: probability, on what each branch of the stack adds.
        pool: "mean" of all elements so far, or the "last" one alone.

    Source: the classifiers of Gu et al., 2021, arXiv:2111.00396, appendix D (mean pooling).
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        dim: int = 64,
        layers: Sequence[Spec] = ("s4d", "s4d"),
        norm: str = "rms",
        feed_forward: FeedForward | Sequence[FeedForward] = "swiglu",
        expansion: float = 4.0,
        dropout: float = 0.0,
        pool: str = "mean",
    ):
        super().__init__()
        check_size(channels=channels, classes=classes, dim=dim)
        check_one_of("pool", pool, POOLS)
        self.channels, self.input_dim, self.classes, self.dim = channels, channels, classes, dim
        self.norm, self.feed_forward, self.expansion = norm, feed_forward, expansion
        self.dropout, self.pool = dropout, pool
        self.stack = Stack(dim, layers, norm, feed_forward, expansion, dropout)
        self.layers = self.stack.layers
        self.causal, self.constant_state = self.stack.causal, self.stack.constant_state
        self.encoder = nn.Linear(channels, dim)
        self.out_norm = build_norm(norm, dim)
        self.head = nn.Linear(dim, classes)

    def init_state(self, batch: int) -> State:
        if not self.causal:
            return ()
        return ClassifierState(self.stack.init_state(batch), *self._empty(batch))

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        before = state if self.causal else ClassifierState((), *self._empty(x.size(0)))
        hidden, stack = self.stack(self.encoder(x), before.stack, reset=reset, lengths=lengths)
        hidden, total, length = self.out_norm(hidden), before.total, before.length
        if self.pool == "mean":
            hidden, total, length = _running_mean(hidden, total, length, reset, lengths)
        return self.head(hidden), ClassifierState(stack, total, length) if self.causal else ()

    def _empty(self, batch: int) -> tuple[Tensor, Tensor]:
        total = self.new_state(batch, self.dim)
        return total, torch.zeros(batch, dtype=torch.int64, device=total.device)


def _running_mean(
    hidden: Tensor, total: Tensor, length: Tensor, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The mean of what came up to each element of its document (B, T, dim), the last sum, and of how many."""
    time = hidden.size(1)
    wide = hidden.to(total.dtype)
    if lengths is not None:
        wide = ragged.mask(wide, ragged.real_tokens(lengths, time))
    sums, total = ops.diagonal_scan(wide.new_ones(hidden.size(2)), wide, state=total, reset=reset)
    place = ragged.positions(reset, length, time) + 1
    if time == 0:
        return (sums / place.unsqueeze(2)).to(hidden.dtype), total, length
    if lengths is None:
        length = place[:, -1]
    else:
        last = place.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
        length = torch.where(lengths > 0, last, length)
    return (sums / place.unsqueeze(2)).to(hidden.dtype), total, length


def reference(m: Classifier, x: Tensor) -> Tensor:
    """The stack by its own reference, and every mean summed anew."""
    stack = sys.modules[type(m.stack).__module__]
    hidden = stack._normed(m.stack, m.out_norm, stack.reference(m.stack, x @ m.encoder.weight.T + m.encoder.bias))
    if m.pool == "mean":
        hidden = torch.stack([hidden[:, : t + 1].mean(1) for t in range(x.size(1))], 1)
    return hidden @ m.head.weight.T + m.head.bias
