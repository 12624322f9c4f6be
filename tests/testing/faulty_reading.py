"""Wrong mixers, a correct toy and one fault each: of resets, padding, causality, pieces, steps, carried gradients."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from faults import FAULTS, seen_by
from torch import Tensor
from toy_mixers import Around, Cache, Fade, FadeState, Speaker

from seriatim.core import ragged
from seriatim.core.state import detach, map_state, where

__all__ = ["FAULTS", "ForgetsResetsInMidChunk"]

RESETS = {"reset_in_mid_chunk", "reset_states", "reset_gradients"}


class Resets(Fade):
    """A Fade that a fault gives other resets."""

    def mix(self, x, state, reset, lengths):
        return super().mix(x, state, None if reset is None else self.changed(reset), lengths)

    @abstractmethod
    def changed(self, reset: Tensor) -> Tensor:
        """The resets that the fault makes of those that were given."""


@seen_by(*RESETS, "reset_adjacent", "reset_at_last_token", "reset_in_pieces", "padding_with_reset")
class ForgetsResetsInMidChunk(Resets):
    def changed(self, reset):
        return reset & (torch.arange(reset.size(1)) == 0)


@seen_by("reset_at_last_token")
class ForgetsResetsAtTheLastToken(Resets):
    def changed(self, reset):
        return reset & (torch.arange(reset.size(1)) < reset.size(1) - 1)


@seen_by("reset_at_first_token", "reset_in_pieces")
class ForgetsResetsAtTheFirstToken(Resets):
    def changed(self, reset):
        return reset & (torch.arange(reset.size(1)) > 0)


@seen_by("reset_adjacent")
class ForgetsTheSecondOfAdjacentResets(Resets):
    def changed(self, reset):
        return reset & ~F.pad(reset, (1, 0))[:, :-1]


@seen_by(*RESETS, "reset_at_first_token")
class ForgetsResetsInTheConvolution(Fade):
    def mix(self, x, state, reset, lengths):
        outputs = [x.new_zeros(x.size(0), 0, self.dim)]
        for t in range(x.size(1)):
            memory = state.memory if reset is None else state.memory.masked_fill(reset[:, t, None], 0)
            y, after = self.token(x[:, t], FadeState(memory, state.tail))
            state = after if lengths is None else where(t < lengths, after, state)
            outputs.append(y[:, None])
        return torch.cat(outputs, 1), state


@seen_by("reset_in_mid_chunk", "reset_adjacent", "reset_at_last_token", "reset_gradients")
class AveragesAcrossDocuments(Around):
    def mix(self, x, state, reset, lengths):
        return super().mix(x, state, None, lengths)


@seen_by("reset_absent")
class IgnoresTheCarriedStateWhenThereIsAReset(Fade):
    def mix(self, x, state, reset, lengths):
        return super().mix(x, state if reset is None else self.init_state(x.size(0)), reset, lengths)


@seen_by("reset_gradients")
class LeaksTheGradientThroughAReset(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        summary = y.sum(1, keepdim=True)
        return y if reset is None else y + summary - summary.detach(), end


@seen_by("padding_with_reset")
class HeedsResetsInThePadding(Fade):
    def forward(self, x, state=None, *, reset=None, lengths=None):
        self._check(x, state, reset, lengths)
        state = self.init_state(x.size(0)) if state is None else state
        x = x if lengths is None else ragged.mask(x, ragged.real_tokens(lengths, x.size(1)))
        return self.mix(x, state, reset, lengths)


@seen_by("padding_states", "lengths_zero", "rewind_forgets")
class LetsPaddingDecayTheState(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        if lengths is None:
            return y, end
        missing = (x.size(1) - lengths)[:, None]
        return y, end._replace(memory=end.memory * 0.9**missing)


@seen_by("padding_outputs", "padding_gradients", "lengths_zero")
class ReadsThePadding(Fade):
    def forward(self, x, state=None, *, reset=None, lengths=None):
        self._check(x, state, reset, lengths)
        return self.mix(x, self.init_state(x.size(0)) if state is None else state, reset, lengths)


@seen_by("padding_outputs", "padding_gradients")
class LooksAroundIntoThePadding(Around):
    def mix(self, x, state, reset, lengths):
        return super().mix(x, state, reset, None)


@seen_by("padding_states", "padding_gradients", "lengths_zero", "rewind_forgets")
class CachesThePadding(Cache):
    def mix(self, x, state, reset, lengths):
        return super().mix(x, state, reset, None)


@seen_by("lengths_full")
class TakesLengthsInOneDtypeOnly(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return (y if lengths is None else y + 0 * F.one_hot(lengths).sum()), end


@seen_by("rewind_forgets")
class RewindsToOneTokenLess(Fade):
    def rewind(self, before, x, keep):
        return super().rewind(before, x, (keep - 1).clamp(min=0))


@seen_by("causal_gradients", "causal_outputs", "causal_parameters", "chunk_outputs", "step_outputs")
class LeaksTheFuture(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return y + 1e-3 * F.pad(self.value(x), (0, 0, 0, 1))[:, 1:], end


@seen_by("causal_gradients", "chunk_gradients", "step_gradients")
class LeaksTheFutureInTheGradient(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        total = y.sum(1, keepdim=True)
        return y + (total - total.detach()), end


@seen_by("causal_outputs", "causal_parameters", "chunk_outputs", "step_outputs")
class ReadsTheNextToken(Speaker):
    def __init__(self, dim: int):
        super().__init__(11, dim)

    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return y + 0.1 * self.logits(self.embedding(F.pad(x, (0, 1))[:, 1:])), end


@seen_by("chunk_gradients", "step_gradients", "gradcheck_state")
class DropsTheGradientOfTheCarriedState(Fade):
    def mix(self, x, state, reset, lengths):
        return super().mix(x, detach(state), reset, lengths)


@seen_by("state_detaches", "chunk_gradients")
class ReturnsADetachedState(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return y, detach(end)


@seen_by("chunk_long")
class ForgetsAtTheBorderOfABlock(Resets):
    def changed(self, reset):
        return reset | (torch.arange(reset.size(1)) == 1024)


@seen_by("step_outputs", "step_states", "step_gradients")
class StepsDifferently(Fade):
    def step(self, x, state):
        y, end = super().step(x, state)
        return y, map_state(lambda leaf: 0.99 * leaf, end)


@seen_by("chunk_outputs", "chunk_states", "chunk_gradients", "state_leaves", "step_states")
class LosesTheTailOfAShortSegment(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return y, (end._replace(tail=0 * end.tail) if 0 < x.size(1) < self.taps else end)
