"""matrix_scan where heads share queries and keys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    LAYOUTS,
    assert_compiles,
    assert_like_reference,
    assert_near,
    assert_resets_part,
    assert_safe_in_threads,
    assert_within_bounds,
    laid_out,
)

from agreement import few, floating, gradients, normal, resets
from scans import assert_rounds_well, saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.shared_scan import share, shared_scan
from seriatim.kernels.cpu.source.shared_layout import TOKENS
from seriatim.ops import backend
from seriatim.ops.matrix_scan import matrix_scan

EXTREMES = [0.0, -1e-3, -0.7, -50.0, -1e4, float("-inf"), 0.5]


def tensors(seed, batch, time, groups, heads, keys, values, decays=True, layout="plain", strength=0.3):
    """q, k, v, a state, and where wanted log decays of that size."""
    shapes = [(batch, time, groups, keys)] * 2 + [(batch, time, heads, values), (batch, heads, keys, values)]
    found = [normal(seed + i, *shape) for i, shape in enumerate(shapes)]
    if decays:
        found.append(-strength * normal(seed + 4, batch, time, heads).abs())
    return [laid_out(z, layout) for z in found]


def scan(q, k, v, state=None, log_decay=None, reset=None, op=matrix_scan):
    return op(q, k, v, log_decay, scale=0.3, state=state, reset=reset)


def with_reset(reset):
    return lambda *inputs: scan(*inputs, reset=reset)


@few
@given(
    batch=st.integers(0, 2),
    time=st.sampled_from([0, 2, 17, 63, 64, 65, 150]),
    heads=st.sampled_from([(1, 1), (1, 2), (1, 3), (2, 4), (2, 6)]),
    sizes=st.tuples(st.sampled_from([1, 3, 16, 17, 40]), st.sampled_from([1, 5, 16, 70])),
    chance=st.sampled_from([None, 0.02, 0.3, 1.0]),
    strength=st.sampled_from([None, 0.0, 1e-3, 0.3, 50.0]),
    layout=st.sampled_from(LAYOUTS),
    starts=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(batch, time, heads, sizes, chance, strength, layout, starts, seed):
    inputs = tensors(seed, batch, time, *heads, *sizes, strength is not None, layout, strength or 0.0)
    reset = None if chance is None else resets(seed, batch, time, chance)
    if not starts:
        del inputs[3]

    def run(q, k, v, *others):
        return scan(q, k, v, others[0] if starts else None, others[-1] if strength is not None else None, reset)

    assert_like_reference("shared_scan", run, inputs)


@few
@given(time=st.integers(2, 150), chance=st.sampled_from([None, 0.2]), seed=st.integers(0, 1000))
def test_agrees_at_any_decay(time, chance, seed):
    *inputs, log_decay = tensors(seed, 2, time, 1, 2, 5, 3)
    drawn = torch.randint(len(EXTREMES), log_decay.shape, generator=torch.Generator().manual_seed(seed))
    inputs.append(torch.tensor(EXTREMES)[drawn].requires_grad_())
    assert_like_reference("shared_scan", with_reset(None if chance is None else resets(seed, 2, time, chance)), inputs)


@pytest.mark.parametrize("time", [0, 1])
def test_the_kernel_itself_at_no_token_and_at_one(time):
    """The op leaves these to PyTorch."""
    inputs = tensors(0, 2, time, 1, 3, 5, 7)
    reset = torch.ones(2, time, dtype=torch.bool)
    reset[1] = False
    found = scan(*inputs, reset=reset, op=shared_scan)
    high = [z.detach().double().requires_grad_() for z in inputs]
    with backend("reference"):
        wanted = scan(*high, reset=reset)
    assert_near(floating(found), floating(wanted), 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


@pytest.mark.parametrize("size", [0.0, 1e-6, 3e-6, 3e-5, 1e-3, 0.1])
def test_rounding_does_not_grow_with_time(size):
    """The same decay at every token: were it rounded each time, errors would add up. In float64 torch is the judge."""
    inputs = [z.detach().abs().requires_grad_() for z in tensors(0, 1, 8192, 1, 2, 3, 4)]
    inputs[-1] = torch.full_like(inputs[-1], -size).requires_grad_()
    high = [z.detach().double().requires_grad_() for z in inputs]
    found, wanted = scan(*inputs), scan(*high)
    assert_near(floating(found), floating(wanted), 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


def test_a_decay_is_as_exact_after_strong_ones():
    """A difference of running sums would lose the small decays that follow on sums of -20,000."""
    inputs = tensors(0, 1, 64, 1, 2, 8, 8, strength=0.1)
    inputs[-1] = inputs[-1].detach().index_fill(1, torch.arange(20), -1e3).requires_grad_()
    with backend("cpu"):
        found = scan(*inputs)[0]
    with backend("reference"):
        wanted = scan(*(z.double() for z in inputs))[0]
    assert_near([found[:, 20:]], [wanted[:, 20:]], 2e-6, "value")


def test_resets_clear_what_is_not_a_number():
    """Neither what came before nor the gradient of what comes after gets across, inside a chunk either."""
    time, apart = 400, slice(60, 340)
    clean = [z.detach() for z in tensors(0, 2, time, 1, 2, 20, 9)]
    q, k, v, state, decay = spoilt = [z.clone() for z in clean]
    state[1], v[0, :50], k[1, 59], q[0, 58] = torch.nan, torch.inf, torch.nan, torch.nan
    v[:, 341], k[1, 340], q[0, 345] = torch.nan, torch.inf, torch.nan
    decay[0, 57], decay[1, 342] = torch.nan, torch.inf
    assert_resets_part(with_reset, apart, clean, spoilt)


def test_only_one_of_the_results_is_used():
    inputs = tensors(0, 2, 70, 1, 2, 8, 9)
    assert_like_reference("shared_scan", lambda *z: (scan(*z)[0], ()), inputs)
    assert_like_reference("shared_scan", lambda *z: (z[0].new_zeros(1), scan(*z)[1]), inputs)


@pytest.mark.parametrize(("time", "keys", "values"), [(2, 17, 3), (70, 5, 33), (150, 33, 70)])
def test_stays_within_its_arrays(time, keys, values):
    inputs = tensors(0, 2, time, 1, 3, keys, values)
    assert_within_bounds(with_reset(resets(0, 2, time, 0.1)), inputs)
    assert_within_bounds(scan, inputs[:3])


def test_more_threads_than_groups_share_out_heads():
    inputs, reset = tensors(0, 1, 70, 1, 4, 9, 30), resets(0, 1, 70, 0.1)
    torch.set_num_threads(3)
    try:
        assert_like_reference("shared_scan", with_reset(reset), inputs)
        assert_within_bounds(with_reset(reset), inputs)
    finally:
        torch.set_num_threads(1)
    assert [share(1, 1, 8, 1), share(1, 1, 8, 2), share(2, 1, 8, 2), share(3, 1, 8, 2)] == [8, 4, 8, 4]


def test_half_precision():
    with backend("cpu"):
        assert_rounds_well(scan, tensors(0, 2, 100, 1, 2, 20, 33), torch.bfloat16, 1e-2)


def test_compiles_as_one_graph():
    assert_compiles(with_reset(resets(0, 2, 40)), tensors(0, 2, 40, 1, 2, 9, 5))


def test_threads():
    assert_safe_in_threads(with_reset(resets(0, 2, 300, 0.01)), tensors(0, 2, 300, 2, 4, 17, 20))


def test_keeps_a_state_a_chunk_and_only_for_gradients():
    inputs = tensors(0, 1, 6 * TOKENS, 1, 2, 16, 8)
    assert saved_bytes(scan, inputs) == 4 * 5 * 2 * 16 * 8  # all chunks but the first


def test_second_derivatives_are_refused():
    inputs = tensors(0, 2, 9, 1, 2, 3, 4)
    with backend("cpu"), pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
        torch.autograd.grad(scan(*inputs)[0].square().sum(), inputs[0], create_graph=True)
