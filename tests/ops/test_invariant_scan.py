import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, floating, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops.invariant_scan import invariant_scan

TIMES = [0, 1, 2, 5, 63, 64, 65, 100, 200]
SYSTEMS, STATES, ANSWERS = 3, 4, 2


def system(seed, whole, is_complex):
    """Real leaves A, B, C, with a last axis of real and imaginary parts, of a system that does not grow."""
    parts = 2 if is_complex else 1
    shape = (SYSTEMS, STATES, STATES) if whole else (SYSTEMS, STATES)
    A = normal(seed, *shape, parts).detach()
    size = torch.linalg.matrix_norm(A.norm(dim=-1), ord=2)[:, None, None, None] if whole else A.norm(dim=-1)[..., None]
    A = (A / size).requires_grad_()
    return [A, normal(seed + 1, SYSTEMS, STATES, parts), normal(seed + 2, SYSTEMS, ANSWERS, STATES, parts)]


def numbers(part):
    return torch.view_as_complex(part) if part.size(-1) == 2 else part.squeeze(-1)


def read(u, A, B, C, state, reset=None, lengths=None):
    """The op on such leaves, what it returns real; answers at padded tokens are 0."""
    y, end = invariant_scan(u, *map(numbers, (A, B, C)), state=numbers(state), reset=reset, lengths=lengths)
    if lengths is not None:
        y = y.masked_fill((torch.arange(u.size(1)) >= lengths[:, None])[..., None, None], 0.0)
    return y, torch.view_as_real(end) if end.is_complex() else end.unsqueeze(-1)


@few
@given(
    time=st.sampled_from(TIMES),
    whole=st.booleans(),
    is_complex=st.booleans(),
    chance=st.sampled_from([None, 0.02, 0.5, 1.0]),
    ragged=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(time, whole, is_complex, chance, ragged, seed):
    inputs = [normal(seed + 3, 3, time, SYSTEMS), *system(seed, whole, is_complex)]
    inputs.append(normal(seed + 4, 3, SYSTEMS, STATES, 2 if is_complex else 1))
    reset = None if chance is None else resets(seed, 3, time, chance)
    lengths = torch.tensor([time, time // 2, 0]) if ragged else None
    assert_backends_agree(lambda: read(*inputs, reset, lengths), inputs)


@pytest.mark.parametrize("whole", [False, True])
def test_is_the_convolution_with_its_kernel(whole):
    A, B, C = map(numbers, system(0, whole, True))
    u, power, kernel = normal(1, 2, 100, SYSTEMS), B, []
    for _ in range(100):
        kernel.append((C @ power.unsqueeze(2)).squeeze(2).real)
        power = A * power if A.dim() == 2 else (A @ power.unsqueeze(2)).squeeze(2)
    wanted = [sum(u[:, t - i, :, None] * kernel[i] for i in range(t + 1)) for t in range(100)]
    assert_close([invariant_scan(u, A, B, C)[0]], [torch.stack(wanted, 1)], 1e-12, "value")


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("where", [[], [0], [0, 1], [63, 64], [5, 40, 41, 42], [99], list(range(100))])
def test_reset_is_a_new_sequence(whole, where):
    parts, state = system(0, whole, True), normal(9, 2, SYSTEMS, STATES, 2)

    def run(u, state=None, reset=None):
        return read(u, *parts, torch.zeros(2, SYSTEMS, STATES, 2).double() if state is None else state, reset)

    scans.assert_reset_begins_anew(run, [normal(8, 2, 100, SYSTEMS)], state, where)


@pytest.mark.parametrize("whole", [False, True])
def test_the_whole_is_its_pieces(whole):
    parts, state = system(0, whole, True), normal(9, 2, SYSTEMS, STATES, 2)

    def run(u, state, reset):
        return read(u, *parts, state, reset)

    scans.assert_pieces_agree(run, [normal(8, 2, 100, SYSTEMS)], state, resets(1, 2, 100, 0.03))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("time", [1, 70])
def test_compiles_as_one_graph(whole, time):
    reset, lengths = resets(0, 2, time), torch.tensor([time, time // 2])
    inputs = [normal(8, 2, time, SYSTEMS), *system(0, whole, False), normal(9, 2, SYSTEMS, STATES, 1)]
    scans.assert_compiles(lambda *z: read(*z, reset, lengths), inputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, tolerance):
    A, B, C = (numbers(z) for z in system(0, False, False))
    inputs = [normal(8, 2, 300, SYSTEMS), A.abs() * 0.9, B, C]
    scans.assert_rounds_well(lambda *z: invariant_scan(*z), inputs, dtype, tolerance)


def test_memory_is_linear_in_time():
    def kept(time):
        A, B, C = (numbers(z) for z in system(0, True, False))
        return scans.saved_bytes(lambda u: invariant_scan(u, A, B, C), [normal(8, 1, time, SYSTEMS)])

    assert kept(4096) < 2.1 * kept(2048)


def test_what_was_before_a_reset_is_gone_even_if_it_is_not_a_number():
    A, B, C = map(numbers, system(0, True, False))
    state = torch.full((2, SYSTEMS, STATES), torch.nan, dtype=torch.float64)
    reset = torch.zeros(2, 130, dtype=torch.bool)
    reset[:, 70] = True
    y, end = invariant_scan(normal(8, 2, 130, SYSTEMS), A, B, C, state=state, reset=reset)
    assert y[:, 70:].isfinite().all()
    assert end.isfinite().all()
    assert y[:, :70].isnan().all()


def test_dtypes():
    u, A = torch.ones(2, 5, 3), torch.full((3, 4), 0.5)
    B, C = torch.ones(3, 4), torch.ones(3, 1, 4)
    y, state = invariant_scan(u.bfloat16(), A, B, C)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    y, state = invariant_scan(u, A * 1j, B, C)
    assert (y.dtype, state.dtype) == (torch.float32, torch.complex64)
    assert all(leaf.dtype == torch.float64 for leaf in floating(invariant_scan(u.double(), A, B, C)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 5)}, r"u has shape \(2, 5\); it must be \(batch, time, systems\)"),
        ({"u": torch.zeros(2, 5, 3) * 1j}, "u has dtype torch.complex64; it must be floating"),
        ({"A": torch.zeros(3)}, r"A has shape \(3,\); it must be \(systems, states\)"),
        ({"A": torch.zeros(3, 4, 5)}, r"A has shape \(3, 4, 5\); it must be \(systems, states, states\)"),
        ({"B": torch.zeros(3, 5)}, r"B has shape \(3, 5\); it must be .* = \(3, 4\)"),
        ({"C": torch.zeros(3, 4)}, r"C has shape \(3, 4\); it must be \(systems, answers, states\)"),
        ({"C": torch.zeros(3, 1, 4, dtype=torch.int64)}, "C has dtype torch.int64; it must be floating or complex"),
        ({"state": torch.zeros(2, 4)}, r"state has shape \(2, 4\); it must be .* = \(2, 3, 4\)"),
        ({"reset": torch.zeros(2, 5)}, "reset has dtype torch.float32; it must be torch.bool"),
        ({"lengths": torch.tensor([1, 6])}, "lengths runs from 1 to 6; it must stay within 0 and time = 5"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    good = {"u": torch.zeros(2, 5, 3), "A": torch.zeros(3, 4), "B": torch.zeros(3, 4), "C": torch.zeros(3, 1, 4)}
    with pytest.raises(SeriatimError, match=message):
        invariant_scan(**{**good, **change})
