from unittest import mock

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
from seriatim.kernels.cpu import matrix_scan as compiled
from seriatim.kernels.cpu.caches import Caches
from seriatim.kernels.cpu.matrix_scan import Blocks, blocks
from seriatim.ops import backend
from seriatim.ops.matrix_scan import matrix_scan

KINDS = ["none", "head", "key"]
EXTREMES = [0.0, -1e-3, -0.7, -50.0, -1e4, float("-inf"), 0.5]


def tensors(kind, seed, batch, time, heads, keys, values, layout="plain", strength=0.3):
    """q, k, v, a state, and for a kind with decay log decays of that size."""
    along = (batch, time, heads)
    shapes = [(*along, keys), (*along, keys), (*along, values), (batch, heads, keys, values)]
    found = [normal(seed + i, *shape) for i, shape in enumerate(shapes)]
    if kind != "none":
        shape = along if kind == "head" else (*along, keys)
        found.append(-strength * normal(seed + 4, *shape).abs())
    return [laid_out(z, layout) for z in found]


def scan(q, k, v, state=None, log_decay=None, reset=None, scale=0.3):
    return matrix_scan(q, k, v, log_decay, scale=scale, state=state, reset=reset)


def with_reset(reset):
    return lambda *inputs: scan(*inputs, reset=reset)


@pytest.mark.parametrize("kind", KINDS)
@few
@given(
    batch=st.integers(0, 3),
    time=st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 64, 129, 300]),
    heads=st.integers(0, 5),
    sizes=st.tuples(st.sampled_from([1, 3, 8, 16, 17, 40, 64]), st.sampled_from([1, 5, 16, 31, 64, 70])),
    chance=st.sampled_from([None, 0.02, 0.3, 1.0]),
    strength=st.sampled_from([0.0, 1e-3, 0.3, 1.0, 50.0]),
    layout=st.sampled_from(LAYOUTS),
    starts=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(kind, batch, time, heads, sizes, chance, strength, layout, starts, seed):
    q, k, v, state, *decay = tensors(kind, seed, batch, time, heads, *sizes, layout, strength)
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [q, k, v, *([state] if starts else []), *decay]

    def run(q, k, v, *others):
        return scan(q, k, v, others[0] if starts else None, others[-1] if decay else None, reset)

    assert_like_reference("matrix_scan", run, inputs)


@pytest.mark.parametrize("kind", ["head", "key"])
@few
@given(time=st.integers(1, 100), chance=st.sampled_from([None, 0.2]), seed=st.integers(0, 1000))
def test_agrees_at_any_decay(kind, time, chance, seed):
    *inputs, log_decay = tensors(kind, seed, 2, time, 2, 5, 3)
    drawn = torch.randint(len(EXTREMES), log_decay.shape, generator=torch.Generator().manual_seed(seed))
    inputs.append(torch.tensor(EXTREMES)[drawn].requires_grad_())
    assert_like_reference("matrix_scan", with_reset(None if chance is None else resets(seed, 2, time, chance)), inputs)


@pytest.mark.parametrize("time", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_itself_at_no_token_and_at_one(kind, time):
    """The op leaves these to PyTorch."""
    inputs = tensors(kind, 0, 2, time, 3, 5, 7)
    q, k, v, state, *decay = inputs
    reset = torch.ones(2, time, dtype=torch.bool)
    reset[1] = False
    found = compiled.matrix_scan(q, k, v, *decay, state=state, reset=reset, scale=0.3)
    high = [z.detach().double().requires_grad_() for z in inputs]
    with backend("reference"):
        wanted = scan(*high, reset=reset)
    assert_near(floating(found), floating(wanted), 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


@pytest.mark.parametrize("kind", ["head", "key"])
@pytest.mark.parametrize("size", [0.0, 1e-6, 3e-6, 3e-5, 1e-3, 0.1])
def test_rounding_does_not_grow_with_time(kind, size):
    """The same decay at every token: were it rounded each time, errors would add up. In float64 torch is the judge."""
    inputs = [z.detach().abs().requires_grad_() for z in tensors(kind, 0, 1, 8192, 1, 3, 4)]
    inputs[-1] = torch.full_like(inputs[-1], -size).requires_grad_()
    high = [z.detach().double().requires_grad_() for z in inputs]
    found, wanted = scan(*inputs), scan(*high)
    assert_near(floating(found), floating(wanted), 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


@pytest.mark.parametrize("kind", ["head", "key"])
def test_a_decay_is_as_exact_after_strong_ones(kind):
    """A difference of running sums would lose the small decays that follow on sums of -20,000."""
    inputs = tensors(kind, 0, 1, 64, 2, 8, 8, strength=0.1)
    inputs[-1] = inputs[-1].detach().index_fill(1, torch.arange(20), -1e3).requires_grad_()
    with backend("cpu"):
        found = scan(*inputs)[0]
    with backend("reference"):
        wanted = scan(*(z.double() for z in inputs))[0]
    assert_near([found[:, 20:]], [wanted[:, 20:]], 2e-6, "value")


@pytest.mark.parametrize("kind", ["head", "key"])
def test_what_a_decay_of_nothing_cuts_has_no_slope(kind):
    inputs = tensors(kind, 0, 2, 40, 2, 8, 8)
    inputs[-1] = torch.full_like(inputs[-1], -torch.inf).requires_grad_()
    with backend("cpu"):
        assert not gradients(scan(*inputs), inputs)[-1].any()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision(kind):
    with backend("cpu"):
        assert_rounds_well(scan, tensors(kind, 0, 2, 100, 2, 20, 33), torch.bfloat16, 1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_resets_clear_what_is_not_a_number(kind):
    """Neither what came before nor the gradient of what comes after gets across, inside a chunk either."""
    time, apart = 400, slice(60, 340)
    clean = [z.detach() for z in tensors(kind, 0, 2, time, 2, 20, 9)]
    q, k, v, state, *decay = spoilt = [z.clone() for z in clean]
    state[1], v[0, :50], k[1, 59], q[0, 58] = torch.nan, torch.inf, torch.nan, torch.nan
    v[:, 341], k[1, 340], q[0, 345] = torch.nan, torch.inf, torch.nan
    for z in decay:
        z[0, 57], z[1, 342] = torch.nan, torch.inf
    assert_resets_part(with_reset, apart, clean, spoilt)


@pytest.mark.parametrize("kind", KINDS)
def test_only_one_of_the_results_is_used(kind):
    inputs = tensors(kind, 0, 2, 70, 2, 8, 9)
    assert_like_reference("matrix_scan", lambda *z: (scan(*z)[0], ()), inputs)
    assert_like_reference("matrix_scan", lambda *z: (z[0].new_zeros(1), scan(*z)[1]), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("time", "keys", "values"), [(2, 17, 3), (70, 5, 33), (150, 33, 70)])
def test_stays_within_its_arrays(kind, time, keys, values):
    inputs = tensors(kind, 0, 2, time, 3, keys, values)
    assert_within_bounds(with_reset(resets(0, 2, time, 0.1)), inputs)
    if kind == "none":
        assert_within_bounds(scan, inputs[:3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("values", [30, 64])
def test_more_threads_than_heads_share_out_columns(kind, values):
    inputs, reset = tensors(kind, 0, 1, 70, 1, 9, values), resets(0, 1, 70, 0.1)
    torch.set_num_threads(3)
    try:
        assert blocks(1, 1, 9, values, False, 3).columns < values
        assert_like_reference("matrix_scan", with_reset(reset), inputs)
        assert_within_bounds(with_reset(reset), inputs)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_as_one_graph(kind):
    assert_compiles(with_reset(resets(0, 2, 40)), tensors(kind, 0, 2, 40, 2, 9, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_threads(kind):
    assert_safe_in_threads(with_reset(resets(0, 2, 300, 0.01)), tensors(kind, 0, 2, 300, 3, 17, 20))


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_a_state_a_cell_and_only_for_gradients(kind):
    cell = blocks(1, 2, 16, 8, kind == "key", 1).cell
    inputs = tensors(kind, 0, 1, 6 * cell, 2, 16, 8)
    assert saved_bytes(scan, inputs) == 4 * 5 * 2 * 16 * 8  # all cells but the first
    with mock.patch.object(compiled, "forward", wraps=compiled.forward) as called:
        scan(*inputs)
        assert called.call_args.args[-1]
        with torch.no_grad():
            scan(*inputs)
        assert not called.call_args.args[-1]


def test_second_derivatives_and_vmap_are_refused():
    inputs = tensors("key", 0, 2, 9, 2, 3, 4)
    with backend("cpu"):
        with pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
            torch.autograd.grad(scan(*inputs)[0].square().sum(), inputs[0], create_graph=True)
        with pytest.raises(SeriatimError, match="no rule for vmap"):
            torch.vmap(lambda q: scan(q, *(z.detach() for z in inputs[1:]))[0])(torch.zeros(3, 2, 9, 2, 3))


def test_blocks_follow_the_caches():
    blocks.cache_clear()
    with mock.patch.object(compiled, "caches", return_value=Caches(48 << 10, 2 << 20)):
        assert blocks(1, 4, 64, 64, False, 1) == Blocks(chunk=32, cell=128, heads=4, columns=64)
        assert blocks(1, 4, 8, 8, True, 1) == Blocks(chunk=16, cell=128, heads=4, columns=8)
        assert blocks(1, 40, 64, 64, False, 1)[1:3] == (64, 10)  # the most up to 16 that leave no thread idle
    blocks.cache_clear()
    with mock.patch.object(compiled, "caches", return_value=Caches(32 << 10, 512 << 10)):
        assert blocks(1, 4, 16, 16, False, 1).cell == 128
        assert blocks(1, 4, 64, 16, False, 1).cell == 64
        assert blocks(1, 4, 64, 256, False, 1).cell == 256  # a state is no larger than the keys of its cell
    blocks.cache_clear()


def test_blocks_keep_the_threads_busy():
    def heads_and_columns(batch, heads, values, threads):
        return blocks(batch, heads, 32, values, False, threads)[2:]

    assert heads_and_columns(8, 4, 64, 2) == (4, 64)
    assert heads_and_columns(1, 4, 64, 2) == (2, 64)  # two items of two heads
    assert heads_and_columns(1, 3, 64, 2) == (2, 64)
    assert heads_and_columns(1, 4, 64, 4) == (1, 64)
    assert heads_and_columns(1, 4, 64, 8) == (1, 32)
    assert heads_and_columns(1, 1, 40, 2) == (1, 32)  # whole vectors, then the rest
    assert heads_and_columns(1, 1, 5, 8) == (1, 5)
