"""What the ops on a matrix memory promise alike: matrix_scan, delta_scan and dplr_scan."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, floating, resets
from matrix_memories import CASES, FADING, state_for
from seriatim.ops import backend

EXTREMES = [0.0, -1e-3, -0.7, -50.0, -1e4, float("-inf"), 0.5]
TIMES = [0, 1, 2, 7, 31, 32, 33, 64, 65, 100]

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
fading = pytest.mark.parametrize("case", FADING.values(), ids=FADING)


def on_all(op, **options):
    """The op on tensors of which the last is the state."""
    return lambda *z: op(*z[:-1], state=z[-1], **options)


@every
@few
@given(
    batch=st.integers(0, 2),
    time=st.sampled_from(TIMES),
    heads=st.integers(1, 2),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    strength=st.sampled_from([0.0, 0.3, 1.0, 1.2]),
    chance=st.sampled_from([None, 0.05, 0.5, 1.0]),
    starts=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(case, batch, time, heads, sizes, strength, chance, starts, scale, seed):
    tensors = case.draw(seed, batch, time, heads, *sizes, strength=strength)
    state = state_for(seed, batch, heads, *sizes) if starts else None
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [*tensors, *([state] if starts else [])]
    assert_backends_agree(lambda: case.op(*tensors, scale=scale, state=state, reset=reset), inputs)


@every
@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("begins", [None, False, True])
def test_a_token_or_two_after_a_state(case, time, begins):
    inputs = [*case.draw(0, 2, time), state_for(0, 2)]
    reset = None if begins is None else torch.tensor([[begins], [False]]).expand(2, time)
    assert_backends_agree(lambda: on_all(case.op, scale=0.3, reset=reset)(*inputs), inputs)


@fading
@few
@given(time=st.sampled_from(TIMES), reset=st.booleans(), seed=st.integers(0, 1000))
def test_agrees_at_any_decay(case, time, reset, seed):
    inputs = [*case.draw(seed, 2, time), state_for(seed, 2)]
    drawn = torch.randint(len(EXTREMES), inputs[case.decay].shape, generator=torch.Generator().manual_seed(seed))
    inputs[case.decay] = torch.tensor(EXTREMES, dtype=torch.float64)[drawn].requires_grad_()
    begins = resets(seed, 2, time) if reset else None
    assert_backends_agree(lambda: on_all(case.op, reset=begins)(*inputs), inputs)


@fading
@pytest.mark.parametrize("size", EXTREMES[:-1])
def test_the_same_decay_at_every_token_in_single_precision(case, size):
    inputs = [*case.draw(0, 1, 100), state_for(0, 1)]
    inputs[case.decay] = torch.full_like(inputs[case.decay], size).requires_grad_()
    scans.assert_rounds_well(on_all(case.op), inputs, torch.float32, 3e-6)


@fading
def test_a_decay_is_as_exact_after_strong_ones(case):
    """A difference of running sums would lose the small decays that follow on sums of -20,000."""
    tensors = [z.detach().float() for z in case.draw(0, 1, 64)]
    tensors[case.decay] *= 0.1
    tensors[case.decay][:, :20] = -1e3
    found = case.op(*tensors)[0]
    with backend("reference"):
        wanted = case.op(*(z.double() for z in tensors))[0]
    assert_close([found[:, 20:]], [wanted[:, 20:]], 1e-6, "value")


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
def test_lower_precision(case, dtype, tolerance):
    inputs = [*case.draw(0, 2, 100, 2, 8, 8), state_for(0, 2, 2, 8, 8)]
    scans.assert_rounds_well(on_all(case.op), inputs, dtype, tolerance)


@every
@pytest.mark.parametrize("where", [[], [0], [0, 1], [31, 32], [5, 40, 41, 42], [99], list(range(100))])
def test_reset_is_a_new_sequence(case, where):
    scans.assert_reset_begins_anew(case.op, case.draw(0, 2, 100), state_for(0, 2), where)


@every
def test_the_whole_is_its_pieces(case):
    scans.assert_pieces_agree(case.op, case.draw(0, 2, 100), state_for(0, 2), resets(1, 2, 100, 0.03))


@every
@pytest.mark.parametrize("time", [1, 70])
def test_compiles_as_one_graph(case, time):
    torch.compiler.reset()  # the other cases' graphs count towards its limit
    scans.assert_compiles(on_all(case.op, reset=resets(0, 2, time)), [*case.draw(0, 2, time), state_for(0, 2)])


@every
def test_strides_do_not_matter(case):
    scans.assert_strides_do_not_matter(case.op, case.draw(0, 2, 40))


@every
@pytest.mark.parametrize("time", [1, 5])
def test_gradients_of_gradients(case, time):
    assert torch.autograd.gradgradcheck(on_all(case.op), [*case.draw(0, 1, time, 1, 2, 1), state_for(0, 1, 1, 2, 1)])


@every
def test_the_state_holds_no_more_than_itself(case):
    state = case.op(*case.draw(0, 2, 100))[1]
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


@every
def test_inputs_are_not_changed(case):
    tensors = [z.detach() for z in case.draw(0, 2, 40)]
    before = [z.clone() for z in tensors]
    case.op(*tensors, reset=resets(0, 2, 40))
    assert_close(tensors, before, 0, "input")


@every
def test_autocast_does_not_lower_the_precision(case):
    tensors = [z.detach().float() for z in case.draw(0, 2, 40)]
    with torch.autocast("cpu", torch.bfloat16):
        found = case.op(*tensors)
    assert_close(floating(found), floating(case.op(*tensors)), 1e-7, "value")


@fading
def test_mixed_dtypes_are_computed_in_the_widest(case):
    *others, last = (z.detach() for z in case.draw(0, 2, 10))
    o, state = case.op(*(z.bfloat16() for z in others), last)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float64)


@every
@pytest.mark.parametrize(
    "sizes", [(0, 40, 2, 3, 2), (2, 40, 0, 3, 2), (2, 40, 2, 0, 3), (2, 40, 2, 3, 0), (2, 0, 2, 3, 2)]
)
def test_sizes_of_none(case, sizes):
    inputs = [*case.draw(0, *sizes), state_for(0, sizes[0], *sizes[2:])]
    assert_backends_agree(lambda: on_all(case.op)(*inputs), inputs)
