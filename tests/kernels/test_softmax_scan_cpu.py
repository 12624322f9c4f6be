import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    LAYOUTS,
    assert_compiles,
    assert_like_reference,
    assert_resets_part,
    assert_safe_in_threads,
    assert_within_bounds,
    laid_out,
)

from agreement import few, gradients, normal, resets
from scans import assert_rounds_well, saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.softmax_scan import chunk_size
from seriatim.ops import backend
from seriatim.ops.softmax_scan import SoftmaxState, init_softmax_state, softmax_scan


@pytest.fixture(autouse=True)
def _compiled():
    with backend("cpu"):
        yield


def tensors(seed, batch, time, heads, dim, layout="plain", size=1.0):
    """scores, values and a state as after some tokens."""
    shapes = [(batch, time, heads), (batch, time, heads, dim), (batch, heads), (batch, heads), (batch, heads, dim)]
    scores, values, maximum, total, weighted = (normal(seed + i, *shape) for i, shape in enumerate(shapes))
    return [laid_out(z, layout) for z in (scores * size, values, maximum, total.abs() + 1, weighted)]


def with_reset(reset=None):
    """The op on scores, values, and the state that there is."""

    def run(scores, values, *state):
        return softmax_scan(scores, values, state=SoftmaxState(*state) if state else None, reset=reset)

    return run


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 300),
    heads=st.integers(1, 3),
    dim=st.sampled_from([0, 1, 3, 16, 17, 130]),
    chance=st.sampled_from([None, 0.02, 0.3, 1.0]),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    starts=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(batch, time, heads, dim, chance, size, starts, layout, seed):
    inputs = tensors(seed, batch, time, heads, dim, layout, size)[: 5 if starts else 2]
    reset = None if chance is None else resets(seed, batch, time, chance)
    assert_like_reference("softmax_scan", with_reset(reset), inputs)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_long(size):
    assert_like_reference("softmax_scan", with_reset(), tensors(0, 1, 8192, 2, 5, size=size))


def test_half_precision():
    with backend("cpu"):
        assert_rounds_well(softmax_scan, tensors(0, 2, 100, 2, 33)[:2], torch.bfloat16, 1e-2)


def test_tokens_that_are_not_there():
    scores, values = (z.detach() for z in tensors(0, 3, 200, 2, 20)[:2])
    scores[0] = scores[1, :150] = scores[2, 90:] = -torch.inf
    reset = torch.zeros(3, 200, dtype=torch.bool)
    reset[1, 70] = reset[2, 95] = True
    inputs = [scores.requires_grad_(), values.requires_grad_()]
    assert_like_reference("softmax_scan", lambda *z: (with_reset(reset)(*z)[0], ()), inputs)
    with backend("cpu"):
        out, state = softmax_scan(*inputs, reset=reset)
    assert (out[0] == 0).all()
    assert (state.maximum[[0, 2]] == -torch.inf).all()
    assert all(gradient.isfinite().all() for gradient in gradients((out, state), inputs))


def test_resets_clear_what_is_not_a_number():
    time, apart = 3 * chunk_size(20), slice(60, chunk_size(20) + 60)
    clean = [z.detach() for z in tensors(0, 2, time, 2, 20)]
    scores, values, maximum, total, weighted = spoilt = [z.clone() for z in clean]
    scores[0, :50], maximum[1], total[0] = torch.nan, torch.nan, torch.nan
    values[1, 50], weighted[0] = torch.inf, torch.inf
    scores[:, -60], values[:, -70] = torch.nan, torch.nan
    assert_resets_part(with_reset, apart, clean, spoilt)


@pytest.mark.parametrize(("time", "heads", "dim"), [(1, 3, 17), (70, 1, 35), (301, 2, 16)])
def test_stays_within_its_arrays(time, heads, dim):
    assert_within_bounds(with_reset(resets(0, 2, time, 0.1)), tensors(0, 2, time, heads, dim))


def test_compiles_as_one_graph():
    assert_compiles(with_reset(resets(0, 2, 40)), tensors(0, 2, 40, 2, 33))


def test_threads():
    assert_safe_in_threads(with_reset(resets(0, 3, 400, 0.01)), tensors(0, 3, 400, 4, 50))


def test_keeps_a_state_a_chunk():
    state = init_softmax_state(2, 3, 30, like=torch.empty(0))
    kept = saved_bytes(lambda *z: softmax_scan(*z, state=state), tensors(0, 2, 8 * chunk_size(30), 3, 30)[:2])
    assert kept == 4 * 2 * 3 * 8 * (30 + 2)


def test_second_derivatives_and_vmap_are_refused():
    scores, values, *_ = tensors(0, 2, 9, 2, 4)
    with backend("cpu"), pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
        torch.autograd.grad(softmax_scan(scores, values)[0].square().sum(), values, create_graph=True)


def test_what_a_chunk_keeps_fits_the_first_cache():
    assert chunk_size(16) > chunk_size(64) >= chunk_size(128) > chunk_size(1024)
