from functools import partial
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops.selective_scan import CHUNK_ELEMENTS, selective_scan

TIMES = [0, 1, 2, 15, 16, 17, 33, 48, 100]
ROOM = [1, 1 << 19]  # for states: a chunk is one block of 16 tokens, or a whole small sequence
EXTREMES = torch.tensor([0.0, 1e-30, 0.1, 1.0, 50.0, 1e4], dtype=torch.float64)


def arguments(seed, batch, time, channels=3, states=2):
    """x, delta, B, C, A, D and a state: those that run along time first."""
    x, delta = normal(seed, batch, time, channels), (normal(seed + 1, batch, time, channels).abs() * 0.3).detach()
    A, D = (-normal(seed + 4, channels, states).exp()).detach(), normal(seed + 5, channels)
    B, C = normal(seed + 2, batch, time, states), normal(seed + 3, batch, time, states)
    return [x, delta.requires_grad_(), B, C, A.requires_grad_(), D, normal(seed + 6, batch, channels, states)]


def scan(x, delta, B, C, A, D, state, reset=None, signed=False):
    return selective_scan(x, delta, A, B, C, D, state=state, reset=reset, signed=signed)


def along_time(A, D, signed=False):
    """The op as a function of what runs along time."""

    def run(x, delta, B, C, state=None, reset=None):
        return scan(x, delta, B, C, A, D, state, reset, signed)

    return run


def room(elements):
    return mock.patch.dict(CHUNK_ELEMENTS, cpu=elements)


@few
@given(
    batch=st.integers(0, 2),
    time=st.sampled_from(TIMES),
    channels=st.integers(1, 3),
    states=st.integers(1, 4),
    passes=st.booleans(),
    chance=st.sampled_from([None, 0.05, 0.5, 1.0]),
    starts=st.booleans(),
    elements=st.sampled_from(ROOM),
    signed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(batch, time, channels, states, passes, chance, starts, elements, signed, seed):
    *tensors, D, state = arguments(seed, batch, time, channels, states)
    D, state = D if passes else None, state if starts else None
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [*tensors, *(z for z in (D, state) if z is not None)]
    with room(elements):
        assert_backends_agree(lambda: scan(*tensors, D, state, reset, signed), inputs)


@few
@given(
    time=st.sampled_from(TIMES),
    reset=st.booleans(),
    elements=st.sampled_from(ROOM),
    signed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_at_any_step_size(time, reset, elements, signed, seed):
    tensors = arguments(seed, 2, time)
    drawn = torch.randint(len(EXTREMES), (2, time, 3), generator=torch.Generator().manual_seed(seed))
    tensors[1] = EXTREMES[drawn].requires_grad_()
    with room(elements):
        assert_backends_agree(lambda: scan(*tensors, resets(seed, 2, time) if reset else None, signed), tensors)


@pytest.mark.parametrize("signed", [False, True])
def test_a_step_of_no_size_changes_nothing(signed):
    tensors = arguments(0, 2, 40)
    *_, state = tensors
    assert_close([scan(tensors[0], torch.zeros(2, 40, 3), *tensors[2:], None, signed)[1]], [state], 0, "state")


def test_a_long_signed_step_turns_the_state_over():
    tensors = arguments(0, 2, 3)
    *_, state = tensors
    tensors[0], tensors[1] = torch.zeros(2, 3, 3), torch.full((2, 3, 3), 1e4)
    assert_close([scan(*tensors, None, True)[1]], [-state], 1e-12, "state")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_lower_precision(dtype, tolerance, signed):
    scans.assert_rounds_well(partial(scan, signed=signed), arguments(0, 2, 100, 4, 8), dtype, tolerance)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("elements", ROOM)
@pytest.mark.parametrize("where", [[], [0], [0, 1], [15, 16], [5, 40, 41, 42], [99], list(range(100))])
def test_reset_is_a_new_sequence(where, elements, signed):
    *tensors, A, D, state = arguments(0, 2, 100)
    with room(elements):
        scans.assert_reset_begins_anew(along_time(A, D, signed), tensors, state, where)


@pytest.mark.parametrize("elements", ROOM)
def test_the_whole_is_its_pieces(elements):
    *tensors, A, D, state = arguments(0, 2, 100)
    with room(elements):
        scans.assert_pieces_agree(along_time(A, D), tensors, state, resets(1, 2, 100, 0.03))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("time", [1, 40])
def test_compiles_as_one_graph(time, signed):
    reset = resets(0, 2, time)
    with room(1):
        scans.assert_compiles(lambda *z: scan(*z, reset, signed), arguments(0, 2, time))


def test_strides_do_not_matter():
    scans.assert_strides_do_not_matter(scan, arguments(0, 2, 40))


@pytest.mark.parametrize("signed", [False, True])
def test_gradients_of_gradients(signed):
    reset = resets(0, 1, 18)
    tensors = arguments(0, 1, 18, 1, 1)
    assert torch.autograd.gradgradcheck(lambda *z: scan(*z, reset, signed), tensors)
    fixed = [z.detach() for z in tensors[1:]]
    assert torch.autograd.gradgradcheck(lambda x: scan(x, *fixed, None, signed), tensors[:1])


def test_gradients_that_can_be_differentiated_again_are_the_same():
    tensors = arguments(0, 2, 40)
    y, state = scan(*tensors)
    loss = y.square().sum() + state.sum()
    once = torch.autograd.grad(loss, tensors, retain_graph=True)
    assert_close(torch.autograd.grad(loss, tensors, create_graph=True), once, 1e-12, "gradient")


def test_the_states_of_all_tokens_are_never_kept():
    """Some 12 inputs' worth is kept; the states of all tokens would be 128 more."""
    tensors = arguments(0, 1, 512, 4, 128)
    with room(1):
        kept = scans.saved_bytes(scan, tensors)
    assert kept < 0.1 * 512 * 4 * 128 * 8


def test_the_state_holds_no_more_than_itself():
    state = scan(*arguments(0, 2, 100))[1]
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_inputs_are_not_changed():
    tensors = [z.detach() for z in arguments(0, 2, 40)]
    before = [z.clone() for z in tensors]
    scan(*tensors, resets(0, 2, 40))
    assert_close(tensors, before, 0, "input")


def test_autocast_does_not_lower_the_precision():
    tensors = [z.detach().float() for z in arguments(0, 2, 40)]
    with torch.autocast("cpu", torch.bfloat16):
        found = scan(*tensors)
    assert_close(found, scan(*tensors), 1e-7, "value")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 5)}, r"x has shape \(2, 5\); it must be \(batch, time, channels\)"),
        ({"x": torch.zeros(2, 5, 3).int()}, "x has dtype torch.int32; it must be floating"),
        ({"delta": torch.zeros(2, 5, 1)}, r"delta has shape \(2, 5, 1\); it must be .* = \(2, 5, 3\)"),
        ({"delta": None}, "delta is None; it must be a tensor"),
        ({"A": torch.zeros(4, 3)}, r"A has shape \(4, 3\); it must be \(channels, states\) = \(3, states\)"),
        ({"B": torch.zeros(2, 5, 3)}, r"B has shape \(2, 5, 3\); it must be .* = \(2, 5, 4\)"),
        ({"C": torch.zeros(2, 4, 4)}, r"C has shape \(2, 4, 4\); it must be .* = \(2, 5, 4\)"),
        ({"D": torch.zeros(4)}, r"D has shape \(4,\); it must be \(channels\) = \(3\)"),
        ({"state": torch.zeros(2, 4, 3)}, r"state has shape \(2, 4, 3\); it must be .* = \(2, 3, 4\)"),
        ({"reset": torch.zeros(2, 5).int()}, "reset has dtype torch.int32; it must be torch.bool"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    x, B = torch.zeros(2, 5, 3), torch.zeros(2, 5, 4)
    good = {"x": x, "delta": x, "A": torch.zeros(3, 4), "B": B, "C": B, "D": torch.zeros(3)}
    with pytest.raises(SeriatimError, match=message):
        selective_scan(**{**good, **change})
