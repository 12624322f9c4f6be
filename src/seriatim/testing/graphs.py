"""torch.compile and torch.export see one whole graph that computes the same.

The backend is aot_eager: what is checked is that the mixer can be captured, forward and backward, not any compiler.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from seriatim.core.state import leaves
from seriatim.testing.report import expect_close, expect_same_gradients
from seriatim.testing.subject import Subject, check

__all__ = ["compiles", "compiles_with_state", "exports", "exports_with_state"]

BATCH, TIME = 2, 5


@check()
def compiles(subject: Subject) -> None:
    """torch.compile(fullgraph=True) equals eager."""
    with _fresh_compiler():
        _compare(subject, _compiled(subject), (subject.input(BATCH, TIME),), {}, "torch.compile")


@check()
def compiles_with_state(subject: Subject) -> None:
    """torch.compile(fullgraph=True) equals eager with a carried state, reset and lengths, in values and gradients."""
    x, state = subject.live_input(BATCH, TIME), subject.live(subject.carried(BATCH))
    with _fresh_compiler():
        results = []
        for mixer in (subject.mixer, _compiled(subject)):
            y, end = mixer(x, state, **_ragged(subject))
            results.append((y, end, subject.gradients([y[0], *_floating(end)], x, state)))
    (y, end, gradients), (ours, our_end, our_gradients) = results
    _compare_reads((ours, our_end), (y, end), "torch.compile with state, reset and lengths")
    expect_same_gradients(our_gradients, gradients, "under torch.compile with state, reset and lengths, against eager")


@check()
def exports(subject: Subject) -> None:
    """torch.export.export captures the mixer, and the exported program equals it."""
    x = (subject.input(BATCH, TIME),)
    with _fresh_compiler(), torch.no_grad():
        _compare(subject, torch.export.export(subject.mixer, x).module(), x, {}, "torch.export")


@check()
def exports_with_state(subject: Subject) -> None:
    """torch.export.export captures the mixer with a carried state, reset and lengths, and the program equals it."""
    given, named = (subject.input(BATCH, TIME), subject.carried(BATCH)), _ragged(subject)
    with _fresh_compiler(), torch.no_grad():
        exported = torch.export.export(subject.mixer, given, named).module()
        _compare(subject, exported, given, named, "torch.export with state, reset and lengths")


@contextmanager
def _fresh_compiler() -> Iterator[None]:
    """Without what was compiled before, so that no recompilation limit is met, nor the compiler's own warnings."""
    torch.compiler.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.compiler.reset()


def _compiled(subject: Subject) -> Any:
    return torch.compile(subject.mixer, fullgraph=True, backend="aot_eager", dynamic=False)


def _ragged(subject: Subject) -> dict[str, Tensor]:
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool, device=subject.device)
    reset[0, 2] = reset[1, 0] = True
    return {"reset": reset, "lengths": torch.tensor([TIME, 3], device=subject.device)}


def _compare(subject: Subject, captured: Any, given: tuple[Any, ...], named: dict[str, Any], what: str) -> None:
    with torch.no_grad():
        _compare_reads(captured(*given, **named), subject.mixer(*given, **named), what)


def _compare_reads(actual: Any, expected: Any, what: str) -> None:
    (ours, our_end), (theirs, their_end) = actual, expected
    expect_close(ours, theirs, f"outputs under {what}, against eager, T = {TIME}")
    for (name, leaf), (_, other) in zip(leaves(our_end), leaves(their_end), strict=True):
        expect_close(leaf, other, f"leaf {name} of the state under {what}, against eager, T = {TIME}")


def _floating(state: Any) -> list[Tensor]:
    return [leaf for _, leaf in leaves(state) if leaf.is_floating_point()]
