"""States are values: taken, joined, chosen, cut, saved and loaded by functions that know no mixer, never changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from seriatim.core import state as states
from seriatim.core.mixer import Mixer
from seriatim.core.state import State, leaves
from seriatim.testing.report import expect, expect_close
from seriatim.testing.subject import FEATURES, STATE, Subject, check

__all__ = [
    "remembers_nothing",
    "rows_have_no_gradient_across",
    "rows_independent",
    "state_detaches",
    "state_forks",
    "state_joins",
    "state_loads",
    "state_size",
    "state_untouched",
    "state_where",
]

BATCH = 3


@check(STATE)
def state_forks(subject: Subject) -> None:
    """take reorders rows, repeats one (a fork) and drops one, and each goes on as itself."""
    state = subject.carried(BATCH)
    expected = subject.after(state, BATCH)
    for rows in ([2, 0, 0, 1], [1], [0, 2]):
        taken = states.take(state, torch.tensor(rows))
        expect_close(subject.after(taken, len(rows)), expected[rows], f"outputs that follow take(state, {rows})")


@check(STATE)
def state_joins(subject: Subject) -> None:
    """join puts states that have read different amounts into one batch, and each row goes on as itself."""
    parts = [_read(subject, subject.input(1, time, seed=time)) for time in (5, 0, 19)]
    expected = torch.cat([subject.after(part, 1) for part in parts])
    what = "outputs that follow join of states of 5, 0 and 19 tokens"
    expect_close(subject.after(states.join(parts), BATCH), expected, what)


@check(STATE)
def state_where(subject: Subject) -> None:
    """where takes some rows from one state and the others from another that has read less."""
    new, old = _read(subject, subject.input(BATCH, 19)), subject.carried(BATCH)
    rows = torch.tensor([True, False, True], device=subject.device)
    ours, theirs = subject.after(new, BATCH), subject.after(old, BATCH)
    expected = torch.where(rows.view(-1, *[1] * (ours.dim() - 1)), ours, theirs)
    actual = subject.after(states.where(rows, new, old), BATCH)
    expect_close(actual, expected, "outputs that follow where([True, False, True], new, old)")


@check(STATE)
def state_detaches(subject: Subject) -> None:
    """detach keeps the values and cuts the gradient; without it the gradient goes back through the state."""
    x = subject.live_input(BATCH, 19)
    state = subject.mixer(x)[1]
    cut = states.detach(state)
    expect(not any(leaf.requires_grad for _, leaf in leaves(cut)), "a leaf of detach(state) still asks for a gradient")
    y, expected = subject.after(cut, BATCH), subject.after(state, BATCH)
    expect_close(y, expected, "outputs that follow detach(state), against those that follow the state")
    floating = any(leaf.is_floating_point() or leaf.is_complex() for _, leaf in leaves(state))
    carries = any(leaf.requires_grad for _, leaf in leaves(state)) or not floating
    expect(carries, "no leaf of the state after 19 tokens is part of the graph: gradients end at the segment")


@check()
def rows_independent(subject: Subject) -> None:
    """A row's outputs and state do not depend on the other rows: alone, reordered, or beside others that are large."""
    x, state = subject.input(BATCH, 19), subject.carried(BATCH)
    for mixer, mode in _modes(subject, x):
        y = mixer(x, state)[0]
        for row in range(BATCH):
            alone = mixer(x[row : row + 1], states.take(state, torch.tensor([row])))[0]
            what = f"outputs of row {row} read alone, against a batch of {BATCH}, {mode} mode"
            expect_close(alone, y[row : row + 1], what)
        order = [2, 0, 1]
        reordered = mixer(x[order], states.take(state, torch.tensor(order)))[0]
        expect_close(reordered, y[order], f"outputs with rows in the order {order}, {mode} mode")
        other = x.clone()
        other[1:] = -1000 * x[1:] if x.is_floating_point() else x[1:].flip(1)
        beside = mixer(other, state)[0]
        expect_close(beside[:1], y[:1], f"outputs of row 0 when the other rows change, {mode} mode")
    changed, first = (subject.after(subject.mixer(z, state)[1], BATCH)[:1] for z in (other, x))
    expect_close(changed, first, "outputs that follow the state of row 0 when the other rows change")


@check(FEATURES)
def rows_have_no_gradient_across(subject: Subject) -> None:
    """A row's outputs have no gradient with respect to another row's input."""
    x = subject.live_input(BATCH, 19)
    gradient = subject.gradients([subject.mixer(x)[0][:1]], x)["x"][1:]
    what = "gradient of the outputs of row 0 with respect to the input of rows 1 and 2"
    expect_close(gradient, torch.zeros_like(gradient), what)


@check(STATE)
def state_size(subject: Subject) -> None:
    """The state's size does not depend on how much was read; a mixer that declares growth does grow."""
    shapes = {}
    for time in (0, 1, 2, 17, 80):
        state = _read(subject, subject.input(2, time))
        shapes[time] = {name: tuple(leaf.shape) for name, leaf in leaves(state)}
    if subject.mixer.constant_state:
        start = {name: tuple(leaf.shape) for name, leaf in leaves(subject.mixer.init_state(2))}
        for time, found in shapes.items():
            expect(found == start, f"the state after {time} tokens has shapes {found}; init_state has {start}")
    else:
        grows = shapes[80] != shapes[17]
        expect(grows, f"constant_state is False, and the state after 17 and after 80 tokens has shapes {shapes[80]}")


@check()
def state_untouched(subject: Subject) -> None:
    """No call changes the state, the input, the reset or the lengths it was given."""
    x, state = subject.input(BATCH, 19), subject.carried(BATCH)
    lengths = torch.tensor([19, 7, 0], device=x.device)
    reset = torch.zeros(BATCH, 19, dtype=torch.bool, device=x.device)
    reset[:, 5] = True
    given = [("x", x), ("reset", reset), ("lengths", lengths)]
    given += [(f"state {name}", leaf) for name, leaf in leaves(state)]
    with _untouched(given, "forward"):
        subject.mixer(x, state)
    with _untouched(given, "forward with reset and lengths"):
        subject.mixer(x, state, reset=reset, lengths=lengths)
    if subject.mixer.causal:
        with _untouched(given, "step"):
            subject.mixer.step(x[:, 0], state)
        with _untouched(given, "rewind"):
            subject.mixer.rewind(state, x, lengths)


@check()
def remembers_nothing(subject: Subject) -> None:
    """Nothing is remembered outside the state: a second call gives the same, and buffers and parameters stay."""
    mixer, x, state = subject.mixer, subject.input(2, 19), subject.carried(2)
    before = {name: tensor.clone() for name, tensor in mixer.state_dict().items()}
    first, start = mixer(x, state)[0], mixer(x)[0]
    mixer(subject.input(BATCH, 33, seed=5))
    if mixer.causal:
        mixer.step(x[:, 0], state)
    expect_close(mixer(x, state)[0], first, "outputs of a second call with the same input and state", 1e-12)
    expect_close(mixer(x)[0], start, "outputs of a second call from the start", 1e-12)
    for name, tensor in mixer.state_dict().items():
        expect(torch.equal(tensor, before[name]), f"forward in evaluation mode changes {name}")


@check(STATE)
def state_loads(subject: Subject) -> None:
    """A state that was saved and loaded (core.state) is the same, leaf for leaf, and goes on as it would have."""
    state = subject.carried(BATCH)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        states.save(state, path)
        loaded = states.load(path, like=subject.mixer.init_state(1))
    expect(type(loaded) is type(state), f"the loaded state is {type(loaded).__name__}, not {type(state).__name__}")
    stored = dict(leaves(loaded))
    for name, leaf in leaves(state):
        same = stored[name].dtype == leaf.dtype
        expect(same, f"leaf {name} was saved as {leaf.dtype} and loaded as {stored[name].dtype}")
        expect_close(stored[name], leaf, f"leaf {name} of the loaded state", 0.0)
    expect_close(subject.after(loaded, BATCH), subject.after(state, BATCH), "outputs that follow the loaded state")


def _read(subject: Subject, x: Tensor) -> State:
    with torch.no_grad():
        return subject.mixer(x)[1]


def _modes(subject: Subject, x: Tensor) -> Iterator[tuple[Mixer, str]]:
    """The mixer as it is and, where that is deterministic (no dropout), a copy in training mode."""
    training = subject.copy(torch.float64).train()
    if torch.equal(training(x)[0], training(x)[0]):
        yield training, "training"
    yield subject.mixer, "evaluation"


@contextmanager
def _untouched(given: list[tuple[str, Tensor]], call: str) -> Iterator[None]:
    before = [(tensor._version, tensor.clone()) for _, tensor in given]
    yield
    for (name, tensor), (version, values) in zip(given, before, strict=True):
        expect(tensor._version == version, f"{call} writes into {name} (version {version} became {tensor._version})")
        expect(torch.equal(tensor, values), f"{call} changes the values of {name}")
