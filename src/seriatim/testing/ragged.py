"""Resets and lengths: rows of several documents, and rows of different lengths, mean those documents read alone."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.core.state import State, take
from seriatim.testing.report import expect_close, expect_finite, expect_same_gradients
from seriatim.testing.subject import CAUSAL, STATE, Subject, check

__all__ = [
    "lengths_full",
    "lengths_zero",
    "padding_gradients",
    "padding_outputs",
    "padding_states",
    "padding_with_reset",
    "reset_absent",
    "reset_adjacent",
    "reset_at_first_token",
    "reset_at_last_token",
    "reset_gradients",
    "reset_in_mid_chunk",
    "reset_in_pieces",
    "reset_states",
    "rewind_forgets",
]

BATCH = 3
MIXED = {41: ((0, 5, 6, 17), (40,), ()), 67: ((15, 16, 33), (0, 64, 65), (31, 32, 66))}
LENGTHS = {41: ((41, 17, 0), (16, 1, 40)), 67: ((65, 33, 64),)}


class Read(NamedTuple):
    outputs: list[Tensor]  # of each row, its real tokens only (lengths[b], D)
    after: list[Tensor]  # of each row, what the state does next


@check()
def reset_at_first_token(subject: Subject) -> None:
    """A reset at token 0 forgets the carried state."""
    _reset(subject, 19, [(0,), (0,), ()])


@check()
def reset_at_last_token(subject: Subject) -> None:
    """A reset at the last token starts a document of one token."""
    _reset(subject, 19, [(18,), (), (18,)])
    _reset(subject, 64, [(63,), (), (63,)])


@check()
def reset_in_mid_chunk(subject: Subject) -> None:
    """A reset inside the segment starts a document there, in each row at its own place."""
    _reset(subject, 41, [(5,), (16,), (17, 30)])
    _reset(subject, 67, MIXED[67])


@check()
def reset_adjacent(subject: Subject) -> None:
    """Resets at adjacent tokens make documents of one token."""
    _reset(subject, 19, [(5, 6), (0, 1, 2), (17, 18)])


@check(STATE)
def reset_states(subject: Subject) -> None:
    """The state after a segment with resets goes on as the state of the last document does."""
    for time, rows in MIXED.items():
        _reset(subject, time, rows, states=True)


@check()
def reset_gradients(subject: Subject) -> None:
    """Gradients of input, carried state and parameters through resets are those of the documents read alone."""
    for time, rows in MIXED.items():
        x, state = subject.live_input(BATCH, time), subject.live(_carried(subject))
        reset = _reset_tensor(rows, time, x.device)
        actual, expected = (
            _gradients(subject, read(subject, x, state, reset, None), x, state) for read in (_together, _separately)
        )
        expect_same_gradients(actual, expected, f"through resets at {list(rows)}, T = {time}")


@check(CAUSAL)
def reset_in_pieces(subject: Subject) -> None:
    """Resets mean the same when the segment is read in pieces, a piece's first and only token included."""
    x, state, reset = subject.input(BATCH, 41), _carried(subject), _reset_tensor(MIXED[41], 41, subject.device)
    whole, after = subject.mixer(x, state, reset=reset)
    for cuts in ((5, 0, 1, 11, 24), (17, 24), (40, 1), (1,) * 41):
        y, end = subject.chunks(x, cuts, state, reset)
        shown = "single tokens" if len(cuts) == 41 else f"pieces {cuts}"
        expect_close(y, whole, f"outputs of {shown} with resets at {list(MIXED[41])}, against the whole")
        what = f"outputs that follow the state after {shown} with resets at {list(MIXED[41])}, against the whole"
        expect_close(subject.after(end, BATCH), subject.after(after, BATCH), what)


@check()
def reset_absent(subject: Subject) -> None:
    """A reset that is false everywhere changes nothing."""
    x, state = subject.input(BATCH, 41), _carried(subject)
    y, end = subject.mixer(x, state, reset=torch.zeros(BATCH, 41, dtype=torch.bool, device=x.device))
    plain, after = subject.mixer(x, state)
    expect_close(y, plain, "outputs with a reset that is false everywhere, against none")
    what = "outputs that follow the state after a reset that is false everywhere, against none"
    expect_close(subject.after(end, BATCH), subject.after(after, BATCH), what)


@check()
def padding_outputs(subject: Subject) -> None:
    """Outputs of real tokens do not depend on the padding, which holds NaN; outputs of padded tokens are finite."""
    for time, lengths, x in _padded(subject):
        state = _carried(subject)
        y = subject.mixer(x, state, lengths=torch.tensor(lengths, device=x.device))[0]
        expect_finite(y, f"outputs with lengths {lengths}, T = {time}, NaN in the padding")
        actual, expected = (read(subject, x, state, None, lengths) for read in (_together, _separately))
        for row, (ours, theirs) in enumerate(zip(actual.outputs, expected.outputs, strict=True)):
            what = f"outputs of row {row} with lengths {lengths}, T = {time}, against the row read alone"
            expect_close(ours, theirs, what)


@check(STATE)
def padding_states(subject: Subject) -> None:
    """The state stops at lengths: padding, which holds NaN, neither writes nor decays it."""
    for time, lengths, x in _padded(subject):
        state = _carried(subject)
        actual, expected = (read(subject, x, state, None, lengths) for read in (_together, _separately))
        for row, (ours, theirs) in enumerate(zip(actual.after, expected.after, strict=True)):
            what = f"outputs that follow the state of row {row} with lengths {lengths}, T = {time}"
            expect_close(ours, theirs, f"{what}, against the row read alone")


@check()
def padding_gradients(subject: Subject) -> None:
    """Gradients of input, carried state and parameters are those of the rows without their padding, which holds NaN."""
    for time, lengths, x in _padded(subject):
        state = subject.live(_carried(subject))
        x = x.requires_grad_() if x.is_floating_point() else x
        actual, expected = (
            _gradients(subject, read(subject, x, state, None, lengths), x, state) for read in (_together, _separately)
        )
        expect_same_gradients(actual, expected, f"with lengths {lengths}, T = {time}, NaN in the padding")


@check()
def padding_with_reset(subject: Subject) -> None:
    """Resets and lengths at once: a reset in the padding is ignored."""
    for time, lengths, x in _padded(subject):
        for states in (False, True):
            _compare_reads(subject, x, _carried(subject), MIXED[time], lengths, states)


@check()
def lengths_zero(subject: Subject) -> None:
    """With every length 0 the state stays what it was, and the outputs are finite."""
    state = _carried(subject)
    nothing = torch.zeros(BATCH, dtype=torch.int64, device=subject.device)
    y, end = subject.mixer(_spoil(subject.input(BATCH, 19), (0, 0, 0)), state, lengths=nothing)
    expect_finite(y, "outputs with lengths (0, 0, 0), T = 19, NaN in the padding")
    what = "outputs that follow the state after lengths (0, 0, 0), against the state before"
    expect_close(subject.after(end, BATCH), subject.after(state, BATCH), what)


@check()
def lengths_full(subject: Subject) -> None:
    """Lengths equal to T, in int64 or int32, change nothing."""
    x, state = subject.input(BATCH, 19), _carried(subject)
    plain, after = subject.mixer(x, state)
    for dtype in (torch.int64, torch.int32):
        y, end = subject.mixer(x, state, lengths=torch.full((BATCH,), 19, dtype=dtype, device=x.device))
        expect_close(y, plain, f"outputs with lengths (19, 19, 19) in {dtype}, T = 19, against none")
        what = f"outputs that follow the state after full lengths in {dtype}, against none"
        expect_close(subject.after(end, BATCH), subject.after(after, BATCH), what)


@check(CAUSAL, STATE)
def rewind_forgets(subject: Subject) -> None:
    """rewind(before, x, keep) is the state of rows that never read more than keep tokens."""
    before = _carried(subject)
    for time, keep in ((9, (0, 4, 9)), (33, (16, 33, 17))):
        x = subject.input(BATCH, time, seed=4)
        end = subject.mixer.rewind(before, x, torch.tensor(keep, device=x.device))
        actual = subject.after(end, BATCH)
        expected = torch.cat(_separately(subject, x, before, None, keep).after)
        what = f"outputs that follow the state rewound to {keep} of {time} tokens, against rows that never read more"
        expect_close(actual, expected, what)


def _together(subject: Subject, x: Tensor, state: State, reset: Tensor | None, lengths: Sequence[int] | None) -> Read:
    """The rows as one batch."""
    given = None if lengths is None else torch.tensor(lengths, device=x.device)
    y, end = subject.mixer(x, state, reset=reset, lengths=given)
    rows = [y[row, : x.size(1) if lengths is None else lengths[row]] for row in range(x.size(0))]
    return Read(rows, list(subject.after(end, x.size(0)).split(1)))


def _separately(subject: Subject, x: Tensor, state: State, reset: Tensor | None, lengths: Sequence[int] | None) -> Read:
    """Each document of each row alone, without reset or lengths; the first one goes on from the carried state."""
    outputs, after = [], []
    for row in range(x.size(0)):
        end = x.size(1) if lengths is None else lengths[row]
        begins = [] if reset is None else reset[row, :end].nonzero().flatten().tolist()
        current = take(state, torch.tensor([row], device=x.device))
        parts = []
        for start, stop in zip([0, *begins], [*begins, end], strict=True):
            current = subject.mixer.init_state(1) if start in begins else current
            part, current = subject.mixer(x[row : row + 1, start:stop], current)
            parts.append(part[0])
        outputs.append(torch.cat(parts))
        after.append(subject.after(current, 1))
    return Read(outputs, after)


def _reset(subject: Subject, time: int, rows: Sequence[Sequence[int]], states: bool = False) -> None:
    _compare_reads(subject, subject.input(BATCH, time), _carried(subject), rows, None, states)


def _compare_reads(
    subject: Subject,
    x: Tensor,
    state: State,
    rows: Sequence[Sequence[int]],
    lengths: Sequence[int] | None,
    states: bool = False,
) -> None:
    reset = _reset_tensor(rows, x.size(1), x.device)
    actual, expected = (read(subject, x, state, reset, lengths) for read in (_together, _separately))
    found, wanted = (read.after if states else read.outputs for read in (actual, expected))
    for row, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        padding = "" if lengths is None else f", length {lengths[row]}"
        what = "outputs that follow the state of" if states else "outputs of"
        place = f"{what} row {row} with resets at {list(rows[row])}{padding}, T = {x.size(1)}, from a carried state"
        expect_close(ours, theirs, f"{place}, against its documents read alone")


def _reset_tensor(rows: Sequence[Sequence[int]], time: int, device: torch.device) -> Tensor:
    reset = torch.zeros(len(rows), time, dtype=torch.bool, device=device)
    for row, positions in enumerate(rows):
        reset[row, list(positions)] = True
    return reset


def _carried(subject: Subject) -> State:
    return subject.carried(BATCH)


def _padded(subject: Subject) -> list[tuple[int, tuple[int, ...], Tensor]]:
    return [(time, row, _spoil(subject.input(BATCH, time), row)) for time, rows in LENGTHS.items() for row in rows]


def _spoil(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Puts NaN, or for token ids one that no vocabulary has, into the padding."""
    x = x.clone()
    for row, length in enumerate(lengths):
        x[row, length:] = torch.nan if x.is_floating_point() else -100
    return x


def _gradients(subject: Subject, read: Read, x: Tensor, state: State) -> dict[str, Tensor]:
    return subject.gradients([torch.cat(read.outputs), torch.cat(read.after)], x, state)
