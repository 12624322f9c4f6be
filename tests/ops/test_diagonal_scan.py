import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, floating, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops.diagonal_scan import diagonal_scan

TIMES = [0, 1, 2, 15, 16, 17, 100, 256, 300]
SIZES = torch.tensor([0.0, 1e-30, 0.5, -0.9, 1.0, 1.3, -2.0], dtype=torch.float64)


def sized(seed, *shape):
    """Factors of all sizes, 0 and beyond 1 among them."""
    drawn = torch.randint(len(SIZES), shape, generator=torch.Generator().manual_seed(seed))
    return SIZES[drawn].requires_grad_()


def arguments(seed, batch, time, *features):
    """a of about 1 in size, and b."""
    return [normal(seed, batch, time, *features), normal(seed + 1, batch, time, *features)]


def as_complex(*parts):
    """Complex numbers from leaves (..., 2), so that what is compared stays real."""
    return [torch.view_as_complex(part) for part in parts]


@few
@given(
    batch=st.integers(0, 2),
    time=st.sampled_from(TIMES),
    features=st.sampled_from([(), (3,), (2, 2)]),
    constant=st.booleans(),
    chance=st.sampled_from([None, 0.02, 0.5, 1.0]),
    starts=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(batch, time, features, constant, chance, starts, seed):
    a = sized(seed, *(features if constant else (batch, time, *features)))
    b, state = normal(seed + 1, batch, time, *features), normal(seed + 2, batch, *features) if starts else None
    if constant:
        a = (a * 0.5).detach().requires_grad_()  # 2 ** 300 is no test of rounding
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [a, b, *([state] if starts else [])]
    assert_backends_agree(lambda: diagonal_scan(a, b, state=state, reset=reset), inputs)


@few
@given(
    time=st.sampled_from(TIMES),
    constant=st.booleans(),
    real_b=st.booleans(),
    reset=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence_in_complex_numbers(time, constant, real_b, reset, seed):
    angle, b = normal(seed, *((3,) if constant else (2, time, 3)), 2), normal(seed + 1, 2, time, 3, 2)
    state, begins = normal(seed + 2, 2, 3, 2), resets(seed, 2, time) if reset else None

    def run():
        a, values, start = as_complex(angle, b, state)
        a = a / a.abs() * 0.98
        h, last = diagonal_scan(a, b[..., 0] if real_b else values, state=start, reset=begins)
        return torch.view_as_real(h), torch.view_as_real(last)

    assert_backends_agree(run, [angle, b, state])


def test_real_factors_and_complex_inputs():
    a, b, state = normal(0, 2, 40, 3), normal(1, 2, 40, 3, 2), normal(2, 2, 3)

    def run():
        h, last = diagonal_scan(a.tanh(), torch.view_as_complex(b), state=state)
        return torch.view_as_real(h), torch.view_as_real(last)

    assert_backends_agree(run, [a, b, state])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_lower_precision(dtype, tolerance):
    b, state = normal(1, 2, 300, 4), normal(2, 2, 4)
    a = normal(0, 2, 300, 4).sigmoid().detach().requires_grad_()
    scans.assert_rounds_well(lambda a, b, state: diagonal_scan(a, b, state=state), [a, b, state], dtype, tolerance)


@pytest.mark.parametrize("where", [[], [0], [0, 1], [15, 16], [5, 40, 41, 42], [99], list(range(100))])
def test_reset_is_a_new_sequence(where):
    scans.assert_reset_begins_anew(diagonal_scan, arguments(0, 2, 100, 3), normal(2, 2, 3), where)


def test_the_whole_is_its_pieces():
    scans.assert_pieces_agree(diagonal_scan, arguments(0, 2, 100, 3), normal(2, 2, 3), resets(1, 2, 100, 0.03))


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("time", [1, 20, 40])
def test_compiles_as_one_graph(constant, time):
    a = normal(0, 3) if constant else normal(0, 2, time, 3)
    reset = resets(0, 2, time)
    scans.assert_compiles(
        lambda a, b, state: diagonal_scan(a, b, state=state, reset=reset), [a, normal(1, 2, time, 3), normal(2, 2, 3)]
    )


def test_strides_do_not_matter():
    scans.assert_strides_do_not_matter(diagonal_scan, arguments(0, 2, 40, 3))


def test_gradients_of_gradients():
    tensors = [*arguments(0, 1, 18, 1), normal(2, 1, 1)]
    assert torch.autograd.gradgradcheck(lambda a, b, state: diagonal_scan(a, b, state=state), tensors)


def test_memory_is_a_few_copies_of_the_input():
    a, b = arguments(0, 1, 1024, 8)
    assert scans.saved_bytes(diagonal_scan, [a, b]) < 2.5 * b.numel() * b.element_size()


def test_the_state_holds_no_more_than_itself():
    state = diagonal_scan(*arguments(0, 2, 100, 3))[1]
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_inputs_are_not_changed():
    tensors = [z.detach() for z in (*arguments(0, 2, 40, 3), normal(2, 2, 3))]
    before = [z.clone() for z in tensors]
    diagonal_scan(*tensors[:2], state=tensors[2])
    assert_close(tensors, before, 0, "input")


def test_dtypes():
    a, b = torch.ones(3), torch.ones(2, 5, 3)
    h, state = diagonal_scan(a, b.bfloat16())
    assert (h.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    h, state = diagonal_scan(a * 1j, b.bfloat16())
    assert (h.dtype, state.dtype) == (torch.complex64, torch.complex64)
    assert all(leaf.dtype == torch.float64 for leaf in floating(diagonal_scan(a.double(), b.double())))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": torch.zeros(2)}, r"b has shape \(2,\); it must be \(batch, time, \*features\)"),
        ({"b": torch.zeros(2, 5, 3, dtype=torch.bool)}, "b has dtype torch.bool; it must be floating or complex"),
        ({"b": None}, "b is None; it must be a tensor"),
        ({"a": torch.zeros(2, 5, 4)}, r"a has shape \(2, 5, 4\); it must be .* = \(2, 5, 3\)"),
        ({"a": torch.zeros(5)}, r"a has shape \(5,\); it must be \(\*features\) = \(3\)"),
        ({"a": torch.zeros(5, 3)}, r"a has shape \(5, 3\); it must be .* = \(2, 5, 3\)"),
        ({"a": 0.9}, "a is 0.9; it must be a tensor"),
        ({"state": torch.zeros(2, 1)}, r"state has shape \(2, 1\); it must be .* = \(2, 3\)"),
        ({"reset": torch.zeros(5, 2, dtype=torch.bool)}, r"reset has shape \(5, 2\); it must be .* = \(2, 5\)"),
        ({"reset": True}, "reset is True; it must be a tensor of bool"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    good = {"a": torch.zeros(2, 5, 3), "b": torch.zeros(2, 5, 3)}
    with pytest.raises(SeriatimError, match=message):
        diagonal_scan(**{**good, **change})


@pytest.mark.parametrize("time", [1, 2, 40])
def test_the_state_does_not_share_memory_with_the_output(time):
    h, state = diagonal_scan(torch.rand(2, time, 3), torch.rand(2, time, 3))
    before = state.clone()
    h.zero_()
    assert torch.equal(state, before)
