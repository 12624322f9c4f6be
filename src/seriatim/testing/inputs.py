"""Inputs at the edge of the contract: no rows, no tokens, odd strides; wrong ones are refused by name."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from seriatim.core import taps
from seriatim.core.errors import SeriatimError
from seriatim.core.state import batch_size, map_state
from seriatim.testing.report import expect, expect_close
from seriatim.testing.subject import STATE, Subject, check

__all__ = [
    "no_rows",
    "no_tokens",
    "refuses_lengths",
    "refuses_reset",
    "refuses_state",
    "refuses_x",
    "strides",
    "taps_are_free",
]

BATCH = 3


@check()
def strides(subject: Subject) -> None:
    """An input and a state that are not contiguous in memory mean the same."""
    x, state = subject.input(BATCH, 19), subject.carried(BATCH)
    expected = subject.mixer(x, state)[0]
    turned = x.transpose(0, 1).contiguous().transpose(0, 1)
    spread = map_state(lambda leaf: torch.stack([leaf, leaf], -1)[..., 0], state)
    expect_close(subject.mixer(turned, state)[0], expected, "outputs for a transposed input")
    expect_close(subject.mixer(x, spread)[0], expected, "outputs from a state of stride 2")


@check()
def no_rows(subject: Subject) -> None:
    """A batch of no rows gives outputs and a state of no rows, in forward and step, with reset and lengths."""
    mixer, x = subject.mixer, subject.input(0, 5)
    y, state = mixer(x)
    width = mixer(subject.input(1, 1))[0].shape[2:]
    expect(y.shape == (0, 5, *width), f"outputs for B = 0, T = 5 have shape {tuple(y.shape)}, not {(0, 5, *width)}")
    expect(batch_size(state) in (0, None), f"the state for B = 0 has {batch_size(state)} rows")
    reset, lengths = torch.zeros(0, 5, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    mixer(x, state, reset=reset.to(x.device), lengths=lengths.to(x.device))
    if mixer.causal:
        y = mixer.step(x[:, 0], mixer.init_state(0))[0]
        expect(y.shape == (0, *width), f"outputs of step for B = 0 have shape {tuple(y.shape)}, not {(0, *width)}")


@check()
def no_tokens(subject: Subject) -> None:
    """A segment of no tokens gives no outputs and leaves the state as it was, with reset and lengths too."""
    mixer, state = subject.mixer, subject.carried(BATCH)
    x = subject.input(BATCH, 0)
    width = mixer(subject.input(1, 1))[0].shape[2:]
    reset, lengths = torch.zeros(BATCH, 0, dtype=torch.bool), torch.zeros(BATCH, dtype=torch.int64)
    for ragged in ({}, {"reset": reset.to(x.device)}, {"lengths": lengths.to(x.device)}):
        shown = f"T = 0 with {next(iter(ragged), 'nothing else')}"
        y, end = mixer(x, state, **ragged)
        wanted = (BATCH, 0, *width)
        expect(y.shape == wanted, f"outputs for {shown} have shape {tuple(y.shape)}, not {wanted}")
        expected = subject.after(state, BATCH)
        expect_close(subject.after(end, BATCH), expected, f"outputs that follow the state after {shown}")
    fresh = subject.after(mixer(x)[1], BATCH)
    expect_close(fresh, subject.after(mixer.init_state(BATCH), BATCH), "outputs that follow T = 0 from the start")


@check()
def refuses_x(subject: Subject) -> None:
    """An x of the wrong shape or dtype is refused with a SeriatimError that names x."""
    x = subject.input(BATCH, 5)
    if subject.mixer.reads_tokens:
        wrong = {"features": torch.zeros(BATCH, 5, 4), "floating ids": x.double(), "one row without a batch": x[0]}
    else:
        wide = torch.cat([x, x[..., :1]], -1)
        wrong = {"a dim one too large": wide, "no batch": x[0], "a fourth dimension": x[None], "integers": x.long()}
    for what, value in wrong.items():
        _expect_refused(partial(subject.mixer, value), "x", what)


@check()
def refuses_reset(subject: Subject) -> None:
    """A reset of the wrong shape or dtype is refused with a SeriatimError that names reset."""
    x = subject.input(BATCH, 5)
    good = torch.zeros(BATCH, 5, dtype=torch.bool, device=x.device)
    wrong = {"floating": good.double(), "integer": good.long(), "one token short": good[:, 1:], "a row": good[0]}
    for what, value in wrong.items():
        _expect_refused(partial(subject.mixer, x, reset=value), "reset", what)


@check()
def refuses_lengths(subject: Subject) -> None:
    """Lengths of the wrong shape or dtype, below 0 or above T are refused with a SeriatimError that names lengths."""
    x = subject.input(BATCH, 5)
    good = torch.tensor([5, 0, 2], device=x.device)
    wrong = {"floating": good.double(), "a row short": good[1:], "two dimensions": good[:, None]}
    if x.device.type == "cpu":
        wrong |= {"above T": good + 1, "below 0": good - 1}
    for what, value in wrong.items():
        _expect_refused(partial(subject.mixer, x, lengths=value), "lengths", what)


@check(STATE)
def refuses_state(subject: Subject) -> None:
    """A state of another batch or of another mixer is refused with a SeriatimError that names state."""
    x, state = subject.input(BATCH, 5), subject.carried(BATCH)
    wrong = {
        f"{BATCH + 1} rows where x has {BATCH}": subject.carried(BATCH + 1),
        "other shapes": map_state(lambda leaf: leaf.unsqueeze(-1), state),
        "another structure": (state, state),
        "a list": [state],
    }
    for what, value in wrong.items():
        _expect_refused(partial(subject.mixer, x, value), "state", what)
        _expect_refused(partial(subject.mixer.step, x[:, 0], value), "state", f"{what}, in a step,")


@check()
def taps_are_free(subject: Subject) -> None:
    """Collecting taps changes no output, and outside of a collection nothing is kept."""
    x = subject.input(2, 19)
    y = subject.mixer(x)[0]
    with taps.collect(subject.mixer) as found:
        expect_close(subject.mixer(x)[0], y, "outputs while taps are collected", 0.0)
    counts = {name: len(values) for name, values in found.values.items()}
    subject.mixer(x)
    after = {name: len(values) for name, values in found.values.items()}
    expect(counts == after, "taps are kept after the collection ended")


def _expect_refused(call: Callable[[], Any], argument: str, what: str) -> None:
    shown = f"{argument} with {what}"
    try:
        call()
    except SeriatimError as error:
        named = re.search(rf"\b{argument}\b", str(error))
        expect(named is not None, f"{shown} is refused with a message that does not name {argument}: {error}")
    except Exception as error:
        expect(False, f"{shown} ends in {type(error).__name__}, not in a SeriatimError that names {argument}: {error}")
    else:
        expect(False, f"{shown} is accepted")
