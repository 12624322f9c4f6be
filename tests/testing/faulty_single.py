"""Wrong mixers whose fault shows in float32 only, as that of a compiled kernel would."""

import torch
from faults import FAULTS, seen_by
from toy_mixers import Fade

from seriatim.core.state import map_state

__all__ = ["FAULTS", "RoundsInSinglePrecision"]


@seen_by("single_outputs", "single_gradients")
class RoundsInSinglePrecision(Fade):
    def mix(self, x, state, reset, lengths):
        y, end = super().mix(x, state, reset, lengths)
        return (y.bfloat16().float() if y.dtype == torch.float32 else y), end


@seen_by("single_gradients")
class LosesAGradientInSinglePrecision(Fade):
    def token(self, x, state):
        return super().token(x, state if x.dtype == torch.float64 else state._replace(tail=state.tail.detach()))


@seen_by("single_steps")
class StepsByAnotherEquationWithoutGradients(Fade):
    def step(self, x, state):
        y, state = self.token(x, state)
        return (y if torch.is_grad_enabled() else 1.01 * y), state


@seen_by("single_step_keeps_state")
class StepsInPlaceWithoutGradients(Fade):
    def step(self, x, state):
        y, end = self.token(x, state)
        if not torch.is_grad_enabled():
            for old, new in zip(state, end, strict=True):
                old.copy_(new)
            end = map_state(torch.clone, end)
        return y, end
