"""Wrong mixers: each is a correct toy with one fault, and the checks that must see it."""

import threading
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_mixers import Around, Cache, Fade, FadeState, Speaker

from seriatim.core import ragged, taps
from seriatim.core.mixer import Mixer
from seriatim.core.state import State, detach, map_state, where

__all__ = ["FAULTS"]

FAULTS: dict[type[Mixer], set[str]] = {}
RESETS = {"reset_in_mid_chunk", "reset_states", "reset_gradients"}


def seen_by(*checks: str):
    """Enters a faulty mixer with the names of the checks that must fail on it."""

    def enter(cls: type[Mixer]) -> type[Mixer]:
        FAULTS[cls] = set(checks)
        return cls

    return enter


class Resets(Fade):
    """A Fade that a fault gives other resets."""

    def mix(self, x, state, reset, lengths):
        return super().mix(x, state, None if reset is None else self.changed(reset), lengths)

    def changed(self, reset: Tensor) -> Tensor:
        raise NotImplementedError


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


@seen_by("state_untouched")
class WritesIntoItsState(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        if x.size(1):
            with torch.no_grad():
                state.memory.copy_(end.memory)
        return y, end


@seen_by("state_untouched")
class WritesIntoItsInput(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        if not x.requires_grad:
            x.mul_(1.5)
        return y, end


@seen_by("remembers_nothing")
class RemembersOutsideItsState(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        earlier = getattr(self, "earlier", 0.0)
        self.earlier = float(y.mean().nan_to_num())
        return y + earlier, end


@seen_by("equals_reference")
class ComputesAnotherEquation(Fade):
    def token(self, x, state):
        y, state = super().token(x, state)
        return 1.01 * y, state


@seen_by("rows_independent", "rows_have_no_gradient_across")
class NormalisesOverTheBatch(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return y - y.mean(0, keepdim=True), end


@seen_by("rows_independent")
class NormalisesOverTheBatchInTraining(Fade):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.norm = nn.BatchNorm1d(dim)

    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return (self.norm(y.mT).mT if y.numel() else y), end


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


@seen_by("chunk_long")
class ForgetsAtTheBorderOfABlock(Resets):
    def changed(self, reset):
        return reset | (torch.arange(reset.size(1)) == 1024)


@seen_by("state_size")
class GrowsInSecret(Cache):
    constant_state = True


@seen_by("state_size")
class DeclaresAGrowthItDoesNotHave(Fade):
    constant_state = False


@seen_by("state_forks", "state_joins", "state_where", "rows_independent")
class CountsForTheFirstRowOnly(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return (y + state.memory[:1].sum() if x.size(0) else y), end


@seen_by("state_loads", "state_size", "layout")
class BeginsInAnotherShape(Fade):
    def init_state(self, batch):
        start = super().init_state(batch)
        return FadeState(start.memory[:, None].float(), start.tail)

    def mix(self, x, state, reset, lengths):
        state = state._replace(memory=state.memory.reshape(x.size(0), -1).to(x.dtype))
        start = super().init_state(x.size(0))
        outputs = [x.new_zeros(x.size(0), 0, self.dim)]
        for t in range(x.size(1)):
            before = state if reset is None else where(reset[:, t], start, state)
            y, after = self.token(x[:, t], before)
            state = after if lengths is None else where(t < lengths, after, before)
            outputs.append(y[:, None])
        return torch.cat(outputs, 1), state


class Count(NamedTuple):
    fade: FadeState
    read: Tensor  # (B,), tokens so far


@seen_by("dtypes", "bf16_drift_long")
class CountsInHalfPrecision(Fade):
    """Adds how much it has read; in bfloat16 the count stops at 256."""

    def init_state(self, batch):
        return Count(super().init_state(batch), self.decay.weight.new_zeros(batch))

    def mix(self, x, state, reset, lengths):
        fade, read, outputs = state.fade, state.read, [x.new_zeros(x.size(0), 0, self.dim)]
        for t in range(x.size(1)):
            y, fade = self.token(x[:, t], fade)
            read = read + 1
            outputs.append(y[:, None] + 0.1 * read[:, None, None])
        return torch.cat(outputs, 1), Count(fade, read)


@seen_by("bf16_drift_short")
class CancelsInHalfPrecision(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return (y + 100) - 100, end


@seen_by("autocast_drift")
class KeepsActivationsInItsState(Fade):
    def token(self, x, state):
        y, end = super().token(x, state)
        return y, end._replace(memory=end.memory.to(y.dtype))


@seen_by("dtypes", "layout", "step_layout")
class AnswersInFloat32(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return y.float(), end


class WrongSine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos() * 1.01


@seen_by("gradcheck_input", "gradcheck_parameters", "gradcheck_state")
class DifferentiatesWrongly(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return WrongSine.apply(y), end


@seen_by("parameters_have_gradients")
class HasAnUnusedParameter(Fade):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.unused = nn.Parameter(torch.ones(dim))


@seen_by("finite_at_extremes")
class OverflowsAtLargeInputs(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return y + (x.abs() + 1e-3).exp().log(), end


@seen_by("finite_at_extremes")
class HasNoGradientAtZero(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return y / (1 + x.square().sum(-1, keepdim=True).sqrt()), end


@seen_by("finite_when_long")
class GrowsWithoutBound(Fade):
    def token(self, x, state):
        y, end = super().token(x, state)
        return y, end._replace(memory=state.memory * 1.02 + end.memory)


@seen_by("pickles")
class CannotBePickled(Fade):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.activation = lambda x: x


@seen_by("copies")
class CannotBeCopied(Fade):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.lock = threading.Lock()


@seen_by("copies")
class SharesMemoryWithItsCopies(Fade):
    def __deepcopy__(self, memo):
        copy = type(self)(self.dim).to(self.conv)
        copy.load_state_dict(self.state_dict())
        copy.conv = self.conv if self.conv.dtype == torch.float64 else copy.conv
        return copy.train(self.training)


@seen_by("state_dict_round_trip")
class KeepsWeightsOutsideTheStateDict(Fade):
    def __init__(self, dim: int):
        super().__init__(dim)
        self.scale = torch.rand(()).item()

    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return self.scale * y, end


@seen_by("spec_round_trip", "state_dict_round_trip")
class KeepsAnotherOptionThanItWasGiven(Fade):
    def __init__(self, dim: int, taps: int = 3):
        super().__init__(dim, taps + 1)


@seen_by("options_refused")
class AcceptsAnyOption(Fade):
    def __init__(self, dim: int, size: int = 5):
        super().__init__(dim)
        self.size = size


@seen_by("compiles", "compiles_with_state", "exports", "exports_with_state")
class BranchesOnValues(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return (y if y.numel() and float(y.detach().abs().max()) < 1e6 else 0 * y), end


@seen_by("no_tokens")
class FailsOnNoTokens(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return torch.stack(y.unbind(1), 1), end


@seen_by("no_rows")
class FailsOnNoRows(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return torch.stack(y.unbind(0)), end


@seen_by("strides")
class WantsContiguousInput(Fade):
    def mix(self, x, state, reset, lengths):
        return super().mix(x.view(-1, self.dim).view(x.shape), state, reset, lengths)


@seen_by("taps_are_free")
class AnswersOtherwiseWhenTapped(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return (y + 1 if taps._collecting else y), end


@seen_by("refuses_x", "refuses_reset", "refuses_lengths", "refuses_state")
class ChecksNothing(Fade):
    def _check(self, x, state, reset, lengths):
        pass


@seen_by("carries_nothing")
class StepsWithoutBeingCausal(Around):
    def step(self, x, state):
        y, state = self.forward(x[:, None], state)
        return y[:, 0], state


@seen_by("carries_nothing")
class CarriesWithoutBeingCausal(Fade):
    causal = False


@seen_by("layout", "step_layout")
class AnswersInAnotherShape(Fade):
    def mix(self, x, state: State, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return torch.cat([y, y], -1), end
