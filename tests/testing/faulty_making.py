"""Wrong mixers, a correct toy and one fault each: of states, rows, numbers, copies, graphs, shapes and refusals."""

import threading
from typing import NamedTuple

import torch
from faults import FAULTS, seen_by
from torch import Tensor, nn
from toy_mixers import Around, Cache, Fade, FadeState

from seriatim.core import taps
from seriatim.core.state import where

__all__ = ["FAULTS", "BranchesOnValues", "CannotBeCopied", "ComputesAnotherEquation"]


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
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return torch.cat([y, y], -1), end
