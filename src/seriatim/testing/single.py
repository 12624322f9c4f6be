"""The properties again in float32, where compiled kernels and programs of single steps do the work.

What they give is held against float64 with the same parameters: outputs, what the state does next, every gradient.
"""

import torch
from torch import Tensor

from seriatim.core.state import State, leaves, map_state
from seriatim.testing.report import expect, expect_close
from seriatim.testing.subject import CAUSAL, STATE, Subject, check

__all__ = ["single_gradients", "single_outputs", "single_step_keeps_state", "single_steps"]

TOLERANCE = 3e-4  # rounding, after the norms and exponentials of a stack of layers
BATCH, TIME = 3, 83  # across the chunks and blocks that kernels work by


@check()
def single_outputs(subject: Subject) -> None:
    """In float32, outputs and state are near those in float64, with resets, padding and a carried state."""
    (y, after), (exact, exact_after) = (_read(each) for each in (subject.single(), subject))
    expect_close(y, exact, f"outputs in float32, T = {TIME}", TOLERANCE)
    if subject.mixer.causal:
        expect_close(after, exact_after, f"outputs in float32 that follow the state, T = {TIME}", TOLERANCE)


@check()
def single_gradients(subject: Subject) -> None:
    """In float32, the gradients of input, state and parameters are near those in float64."""
    found: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    for each, gradients in ((subject.single(), found), (subject, wanted)):
        x, state = each.live_input(BATCH, TIME), each.live(_state(each))
        y, after = _read(each, x, state)
        gradients |= each.gradients([y, after], x, state)
    for name, gradient in wanted.items():
        expect_close(found[name], gradient, f"gradient of {name} in float32, T = {TIME}", TOLERANCE)


@check(CAUSAL)
def single_steps(subject: Subject) -> None:
    """In float32 without gradients, as in writing, steps give what the whole gives, from a carried state on."""
    subject = subject.single()
    with torch.no_grad():
        x, state = subject.input(BATCH, 19), _state(subject)
        whole, whole_state = subject.mixer(x, state)
        steps, steps_state = subject.steps(x, state)
        expect_close(steps, whole, "outputs of 19 steps in float32", TOLERANCE)
        found, wanted = (subject.after(end, BATCH) for end in (steps_state, whole_state))
        expect_close(found, wanted, "outputs in float32 that follow 19 steps", TOLERANCE)


@check(CAUSAL, STATE)
def single_step_keeps_state(subject: Subject) -> None:
    """In float32 without gradients, a step neither changes the state it is given nor returns part of it."""
    subject = subject.single()
    with torch.no_grad():
        x, state = subject.input(BATCH, 3), _state(subject)
        before = map_state(torch.clone, state)
        first, after = subject.mixer.step(x[:, 0], state)
        kept, kept_state = first.clone(), map_state(torch.clone, after)
        subject.mixer.step(x[:, 1], after)
        subject.mixer.step(x[:, 2], state)
    for what, now, then in (("given", state, before), ("returned", after, kept_state)):
        for (name, a), (_, b) in zip(leaves(now), leaves(then), strict=True):
            expect(torch.equal(a, b), f"leaf {name} of the state that step was {what} changed during a later step")
    expect(torch.equal(first, kept), "outputs of a step changed during a later step")


def _state(subject: Subject) -> State:
    return subject.carried(BATCH) if subject.mixer.causal else ()


def _read(subject: Subject, x: Tensor | None = None, state: State | None = None) -> tuple[Tensor, Tensor]:
    """The outputs of real tokens, and what the state does next, of rows with resets and padding."""
    mixer = subject.mixer
    x = subject.input(BATCH, TIME) if x is None else x
    state = _state(subject) if state is None else state
    lengths = torch.tensor([TIME, 0, 58], device=x.device)
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool, device=x.device)
    reset[0, [0, 17]] = reset[2, [31, 32, 57]] = True
    y, state = mixer(x, state, reset=reset, lengths=lengths) if mixer.causal else mixer(x, lengths=lengths)
    real = (torch.arange(TIME, device=x.device) < lengths[:, None]).unflatten(1, (TIME, *[1] * (y.dim() - 2)))
    y = torch.where(real, y, 0.0)
    return y, subject.after(state, BATCH) if mixer.causal else y.new_zeros(0)
