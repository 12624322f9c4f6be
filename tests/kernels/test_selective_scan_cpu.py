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
from seriatim.kernels.cpu.caches import Caches
from seriatim.kernels.cpu.selective_scan import blocks, chunk_size, forward
from seriatim.ops import backend
from seriatim.ops.selective_scan import selective_scan


@pytest.fixture(autouse=True)
def _compiled():
    with backend("cpu"):
        yield


def tensors(seed, batch, time, channels, states, layout="plain", steps=0.3):
    """x, delta, A, B, C, D and a state. With the channels' rates, steps of 0.3 decay by e^-50 to 1."""
    along, ports = (batch, time, channels), (batch, time, states)
    x, delta, A, B, C, D, state = (
        normal(seed + i, *shape)
        for i, shape in enumerate(
            [along, along, (channels, states), ports, ports, (channels,), (batch, channels, states)]
        )
    )
    return [laid_out(z, layout) for z in (x, delta.abs() * steps, -(2 * A).exp(), B, C, D, state)]


def scan(x, delta, A, B, C, D=None, state=None, reset=None, signed=False):
    return selective_scan(x, delta, A, B, C, D, state=state, reset=reset, signed=signed)


def with_reset(reset, signed=False):
    return lambda *inputs: scan(*inputs, reset=reset, signed=signed)


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 200),
    channels=st.sampled_from([1, 3, 16, 17, 40, 150]),
    states=st.sampled_from([0, 1, 5, 16, 17, 64]),
    chance=st.sampled_from([None, 0.02, 0.3, 1.0]),
    steps=st.sampled_from([0.0, 1e-3, 0.3, 1e3]),
    given_inputs=st.sampled_from([5, 6, 7]),
    layout=st.sampled_from(LAYOUTS),
    signed=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(batch, time, channels, states, chance, steps, given_inputs, layout, signed, seed):
    inputs = tensors(seed, batch, time, channels, states, layout, steps)[:given_inputs]
    reset = None if chance is None else resets(seed, time, batch, chance).mT
    # A single output may be a small sum of large terms.
    assert_like_reference("selective_scan", with_reset(reset, signed), inputs, 5e-6)


@pytest.mark.parametrize("steps", [None, 0.0, 1e-6, 1e-4, 1e-2, 1.0])
def test_rounding_does_not_grow_with_time(steps):
    """In float64 the torch backend is the reference, to nine digits. None: decays lost if rounded one by one."""
    inputs = tensors(0, 1, 8192, 20, 3, steps=0.0 if steps is None else steps)
    if steps is None:
        x, delta, A, *others = (z.detach() for z in inputs)
        inputs = [z.requires_grad_() for z in (x, delta + 2.0**-13, A * 1e-3, *others)]
    high = [z.detach().double().requires_grad_() for z in inputs]
    wanted, found = scan(*high), scan(*inputs)
    assert_near(floating(found), floating(wanted), 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


@pytest.mark.parametrize(("steps", "tolerance"), [(0.0, 5e-6), (1e-6, 5e-5), (1e-4, 2e-5), (0.01, 1e-5), (1.0, 3e-6)])
def test_rounding_of_signed_decays(steps, tolerance):
    """These are rounded token by token: steps so small that much of each is lost add up over 8192 tokens."""
    inputs = tensors(0, 1, 8192, 20, 3, steps=steps)
    high = [z.detach().double().requires_grad_() for z in inputs]
    wanted, found = scan(*high, signed=True), scan(*inputs, signed=True)
    assert_near(floating(found), floating(wanted), tolerance, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), tolerance, "gradient")


@pytest.mark.parametrize("steps", [1e-4, 0.01])
def test_states_that_grow(steps):
    """Rates above 0, or steps below, are nobody's wish, but the equation is what it is."""
    x, delta, A, *others = tensors(0, 2, 90, 20, 4, steps=steps)
    inputs = [x, delta, -A, *others]
    assert_like_reference("selective_scan", scan, [z.detach().requires_grad_() for z in inputs])
    inputs[1] = -3 * delta
    assert_like_reference("selective_scan", scan, [z.detach().requires_grad_() for z in inputs])


def test_half_precision():
    with backend("cpu"):
        assert_rounds_well(scan, tensors(0, 2, 100, 33, 7), torch.bfloat16, 1e-2)


@pytest.mark.parametrize("signed", [False, True])
def test_resets_clear_what_is_not_a_number(signed):
    """Neither what came before nor the gradient of what comes after gets across."""
    time, apart = 200, slice(60, 140)
    clean = [z.detach() for z in tensors(0, 2, time, 20, 5)]
    x, delta, _, B, C, _, state = spoilt = [z.clone() for z in clean]
    x[0, :50], state[1], B[1, 50], delta[0, 55] = torch.nan, torch.inf, torch.inf, torch.nan
    x[:, 150], C[0, 141], delta[1, 143] = torch.inf, torch.nan, torch.nan
    assert_resets_part(lambda reset: with_reset(reset, signed), apart, clean, spoilt)


def test_a_step_that_is_not_a_number_stays_in_its_channel():
    inputs = [z.detach() for z in tensors(0, 1, 80, 20, 5)]
    with backend("cpu"):
        wanted = scan(*inputs)[0]
        inputs[1][0, 3, 7] = torch.nan
        found = scan(*inputs)[0]
    assert found[0, 3:, 7].isnan().all()
    others = [i for i in range(20) if i != 7]
    assert_near([found[..., others]], [wanted[..., others]], 1e-6, "other channels")


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("time", "channels", "states"), [(2, 17, 3), (70, 5, 17), (131, 33, 16)])
def test_stays_within_its_arrays(time, channels, states, signed):
    inputs = tensors(0, 2, time, channels, states)
    assert_within_bounds(with_reset(resets(0, 2, time, 0.1), signed), inputs)
    inputs[1] = (inputs[1].detach() * 1e3).requires_grad_()
    assert_within_bounds(with_reset(None, signed), inputs[:5])


def test_one_token():
    """For few numbers the kernel is not worth calling, but right."""
    with mock.patch("seriatim.ops.selective_scan.LEAST", 0):
        assert_like_reference("selective_scan", scan, tensors(0, 2, 1, 20, 5))
        assert_like_reference("selective_scan", with_reset(resets(1, 2, 1, 0.5)), tensors(0, 2, 1, 20, 5))
        assert_within_bounds(scan, tensors(0, 2, 1, 17, 3))
    with mock.patch("seriatim.kernels.cpu.selective_scan.forward", wraps=forward) as called:
        scan(*tensors(0, 2, 1, 20, 5))
        assert not called.called
        scan(*tensors(0, 2, 1, 1024, 16))
        assert called.called


@pytest.mark.parametrize("states", [3, 40])
def test_items_of_several_vectors(states):
    with mock.patch("seriatim.kernels.cpu.selective_scan._ITEMS", 1):
        assert blocks(2, 150, states) == 128
        assert_like_reference("selective_scan", with_reset(resets(0, 2, 45)), tensors(0, 2, 45, 150, states))


def test_compiles_as_one_graph():
    assert_compiles(with_reset(resets(0, 2, 40)), tensors(0, 2, 40, 20, 5))


def test_threads():
    assert_safe_in_threads(with_reset(resets(0, 3, 300, 0.01)), tensors(0, 3, 300, 150, 9))


def test_keeps_a_state_a_chunk_and_only_for_gradients():
    inputs = tensors(0, 2, 8 * chunk_size(9), 32, 9)
    assert saved_bytes(scan, inputs) == 4 * 2 * 8 * 32 * 9
    with mock.patch("seriatim.kernels.cpu.selective_scan.forward", wraps=forward) as called:
        scan(*inputs)
        assert called.call_args.args[-2]
        with torch.no_grad():
            scan(*inputs)
        assert not called.call_args.args[-2]


def test_second_derivatives_and_vmap_are_refused():
    inputs = tensors(0, 2, 9, 4, 3)
    with backend("cpu"):
        with pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
            torch.autograd.grad(scan(*inputs)[0].square().sum(), inputs[0], create_graph=True)
        with pytest.raises(SeriatimError, match="no rule for vmap"):
            torch.vmap(lambda x: scan(x, *(z.detach() for z in inputs[1:]))[0])(torch.zeros(3, 2, 9, 4))


def test_chunks_fit_the_caches():
    with mock.patch("seriatim.kernels.cpu.selective_scan.caches", return_value=Caches(48 << 10, 2 << 20)):
        assert [chunk_size(states) for states in (1, 16, 17, 32, 500)] == [16, 16, 32, 32, 32]
        assert chunk_size(20_000) == 16  # not even the second level holds more
    with mock.patch("seriatim.kernels.cpu.selective_scan.caches", return_value=Caches(32 << 10, 2 << 20)):
        assert [chunk_size(states) for states in (1, 16)] == [8, 16]


def test_blocks_share_the_work_and_waste_no_memory():
    assert blocks(2, 512, 16) == 64  # 16 items
    assert blocks(64, 512, 16) == 128  # no wider than of use
    assert blocks(1, 512, 64) == 64  # no narrower than the sums that each item writes
    assert blocks(1, 5, 64) == blocks(0, 0, 0) == 16
