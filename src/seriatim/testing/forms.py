"""Three forms, one meaning: the whole segment, any pieces of it, one token at a time; and no output sees the future."""

from collections.abc import Iterator

import torch
from torch import Tensor

from seriatim.core.state import State, leaves
from seriatim.testing.report import expect_close, expect_same_gradients
from seriatim.testing.subject import CAUSAL, FEATURES, STATE, Subject, check

__all__ = [
    "causal_gradients",
    "causal_outputs",
    "causal_parameters",
    "chunk_gradients",
    "chunk_long",
    "chunk_outputs",
    "chunk_states",
    "state_leaves",
    "step_gradients",
    "step_outputs",
    "step_states",
]

CUTS = ((1, 40), (5, 0, 7, 29), (16, 25), (17, 0, 0, 24), (40, 1), (16, 17, 34), (33, 34), (64, 3), (65, 1, 1))
BATCH = 3


@check(CAUSAL)
def chunk_outputs(subject: Subject) -> None:
    """Outputs of any split into pieces are those of the whole (pieces of 0 and 1, pieces across chunk borders)."""
    for x, start, begin in _segments(subject, (41, 67)):
        whole = subject.mixer(x, start)[0]
        for cuts in _cuts(x):
            what = f"outputs of pieces {cuts} against the whole, from {begin}"
            expect_close(subject.chunks(x, cuts, start)[0], whole, what)


@check(CAUSAL, STATE)
def chunk_states(subject: Subject) -> None:
    """The state after any split into pieces goes on as the state after the whole does."""
    for x, start, begin in _segments(subject, (41, 67)):
        whole = subject.after(subject.mixer(x, start)[1], BATCH)
        for cuts in _cuts(x):
            what = f"outputs that follow the state after pieces {cuts}, against the whole, from {begin}"
            expect_close(subject.after(subject.chunks(x, cuts, start)[1], BATCH), whole, what)


@check(CAUSAL)
def chunk_gradients(subject: Subject) -> None:
    """Gradients of input, carried state and parameters through any split into pieces are those through the whole."""
    x, start = subject.live_input(BATCH, 41), subject.live(subject.carried())
    whole = _gradients(subject, subject.mixer(x, start), x, start)
    for cuts in _cuts(x):
        pieces = _gradients(subject, subject.chunks(x, cuts, start), x, start)
        expect_same_gradients(pieces, whole, f"through pieces {cuts}, against the whole")


@check(CAUSAL)
def chunk_long(subject: Subject) -> None:
    """Outputs and gradients of 1,500 tokens with resets, whole and in pieces, agree (the borders of large blocks)."""
    x, start = subject.live_input(2, 1500), subject.live(subject.carried(2))
    reset = torch.zeros(2, 1500, dtype=torch.bool, device=subject.device)
    reset[0, 700] = reset[1, 1023] = reset[1, 1030] = True
    cuts = (333, 678, 489)
    whole, pieces = subject.mixer(x, start, reset=reset)[0], subject.chunks(x, cuts, start, reset)[0]
    expect_close(pieces, whole, f"outputs of pieces {cuts} with resets at [[700], [1023, 1030]], against the whole")
    expected, actual = (subject.gradients([y], x, start) for y in (whole, pieces))
    expect_same_gradients(actual, expected, f"through pieces {cuts}, against the whole")


@check(CAUSAL)
def step_outputs(subject: Subject) -> None:
    """Outputs of step after step are those of the whole."""
    for x, start, begin in _segments(subject, (19, 67)):
        state = subject.mixer.init_state(BATCH) if start is None else start
        stepped, whole = subject.steps(x, state)[0], subject.mixer(x, start)[0]
        expect_close(stepped, whole, f"outputs of steps against the whole, from {begin}")


@check(CAUSAL, STATE)
def step_states(subject: Subject) -> None:
    """The state after step after step goes on as the state after the whole does."""
    for x, start, begin in _segments(subject, (19, 67)):
        state = subject.mixer.init_state(BATCH) if start is None else start
        stepped, whole = subject.steps(x, state)[1], subject.mixer(x, start)[1]
        what = f"outputs that follow the state after {x.size(1)} steps, against the whole, from {begin}"
        expect_close(subject.after(stepped, BATCH), subject.after(whole, BATCH), what)


@check(CAUSAL)
def step_gradients(subject: Subject) -> None:
    """Gradients of input, carried state and parameters through steps are those through the whole."""
    x, start = subject.live_input(BATCH, 19), subject.live(subject.carried())
    whole = _gradients(subject, subject.mixer(x, start), x, start)
    steps = _gradients(subject, subject.steps(x, start), x, start)
    expect_same_gradients(steps, whole, "through steps, against the whole")


@check(CAUSAL, STATE)
def state_leaves(subject: Subject) -> None:
    """The state after pieces, and after steps, is leaf by leaf the state after the whole (a gauge may skip this)."""
    x, start = subject.input(BATCH, 41), subject.carried()
    whole = dict(leaves(subject.mixer(x, start)[1]))
    others = {f"pieces {cuts}": subject.chunks(x, cuts, start)[1] for cuts in _cuts(x)}
    others["steps"] = subject.steps(x, start)[1]
    for form, state in others.items():
        for name, leaf in leaves(state):
            if leaf.shape == whole[name].shape:
                expect_close(leaf, whole[name], f"leaf {name} of the state after {form}, against the whole")


@check(CAUSAL, FEATURES)
def causal_gradients(subject: Subject) -> None:
    """No output has a gradient with respect to a later input."""
    x = subject.live_input(2, 67)
    y = subject.mixer(x, subject.carried(2))[0]
    for last in (0, 7, 15, 16, 31, 63, 64, 65):
        gradient = subject.gradients([y[:, : last + 1]], x)["x"]
        future = gradient[:, last + 1 :]
        what = f"gradient of outputs up to token {last} with respect to later inputs"
        expect_close(future, torch.zeros_like(future), what)


@check(CAUSAL)
def causal_outputs(subject: Subject) -> None:
    """No output changes when later inputs change."""
    x, other, state = subject.input(2, 67), subject.input(2, 67, seed=3), subject.carried(2)
    y = subject.mixer(x, state)[0]
    for last in (0, 7, 15, 16, 31, 63, 64, 65):
        changed = subject.mixer(torch.cat([x[:, : last + 1], other[:, last + 1 :]], 1), state)[0]
        what = f"outputs up to token {last} when later inputs change"
        expect_close(changed[:, : last + 1], y[:, : last + 1], what)


@check(CAUSAL)
def causal_parameters(subject: Subject) -> None:
    """The gradient of outputs with respect to the parameters does not depend on later inputs."""
    x, other = subject.input(2, 41), subject.input(2, 41, seed=3)
    for last in (7, 16, 32):
        changed = torch.cat([x[:, : last + 1], other[:, last + 1 :]], 1)
        expected, actual = (subject.gradients([subject.mixer(z)[0][:, : last + 1]]) for z in (x, changed))
        expect_same_gradients(actual, expected, f"of outputs up to token {last} when later inputs change")


def _segments(subject: Subject, times: tuple[int, ...]) -> Iterator[tuple[Tensor, State | None, str]]:
    for time in times:
        yield subject.input(BATCH, time), None, "the start"
        yield subject.input(BATCH, time), subject.carried(BATCH), "a carried state"


def _cuts(x: Tensor) -> list[tuple[int, ...]]:
    return [cuts for cuts in CUTS if sum(cuts) == x.size(1)]


def _gradients(subject: Subject, read: tuple[Tensor, State], x: Tensor, start: State) -> dict[str, Tensor]:
    y, state = read
    return subject.gradients([y, subject.after(state, BATCH)], x, start)
