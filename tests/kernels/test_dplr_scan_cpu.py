"""dplr_scan on the kernels of delta_scan, whose tests hold what is the same for both."""

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    LAYOUTS,
    assert_agrees,
    assert_compiles,
    assert_like_reference,
    assert_near,
    assert_safe_in_threads,
    assert_within_bounds,
    cpu,
    laid_out,
)

from agreement import few, floating, gradients, normal, resets
from scans import saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu import delta_scan as module
from seriatim.kernels.cpu.delta_scan import segment
from seriatim.kernels.cpu.source.delta_layout import CHUNK
from seriatim.ops import backend, delta_scan
from seriatim.ops.dplr_scan import dplr_scan

FADING = {"slow": 1e-4, "usual": 0.1, "strong": 5.0}
EXTREMES = [0.0, -1e-3, -0.7, -50.0, -1e4, float("-inf"), 0.1]


def tensors(seed, batch, time, heads, keys, values, layout="plain", fading="usual", rate=1.0):
    """q, k, v, log_decay, read, write and a state. What is read is of length 1, and written is its opposite, each
    feature at a rate of its own from 0 to `rate`."""
    q, k, v, g, r, a = (
        normal(seed + i, batch, time, heads, size).detach()
        for i, size in enumerate((keys, keys, values, keys, keys, keys))
    )
    r = torch.nn.functional.normalize(r, dim=-1)
    found = [q, k, v, -FADING[fading] * g.exp(), r, -rate * a.sigmoid() * r]
    return [laid_out(z, layout) for z in (*found, normal(seed + 9, batch, heads, keys, values))]


def with_reset(reset=None, scale=1.0):
    """The op on tensors of which the last is the state."""
    return lambda *z: dplr_scan(*z[:-1], scale=scale, state=z[-1], reset=reset)


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 150),
    heads=st.integers(1, 3),
    keys=st.sampled_from([0, 3, 8, 16, 17, 40, 70]),
    values=st.sampled_from([0, 1, 5, 16, 33, 64, 70]),
    chance=st.sampled_from([None, 0.02, 0.3, 1.0]),
    scale=st.sampled_from([1.0, 0.3]),
    fading=st.sampled_from(list(FADING)),
    rate=st.sampled_from([0.0, 0.3, 1.0]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(batch, time, heads, keys, values, chance, scale, fading, rate, layout, seed):
    inputs = tensors(seed, batch, time, heads, keys, values, layout, fading, rate)
    assert_agrees(with_reset(None if chance is None else resets(seed, batch, time, chance), scale), inputs)


@few
@given(time=st.integers(1, 70), reset=st.booleans(), seed=st.integers(0, 1000))
def test_without_a_state(time, reset, seed):
    begins = resets(seed, 2, time) if reset else None
    *inputs, _ = tensors(seed, 2, time, 2, 20, 9)
    assert_agrees(lambda *z: dplr_scan(*z, reset=begins), inputs)


@few
@given(time=st.integers(1, 70), reset=st.booleans(), seed=st.integers(0, 1000))
def test_any_decay(time, reset, seed):
    inputs = tensors(seed, 2, time, 2, 20, 9, rate=0.3)
    drawn = torch.randint(len(EXTREMES), inputs[3].shape, generator=torch.Generator().manual_seed(seed))
    inputs[3] = torch.tensor(EXTREMES)[drawn].requires_grad_()
    assert_agrees(with_reset(resets(seed, 2, time) if reset else None), inputs)


@pytest.mark.parametrize("size", EXTREMES[:-1])
def test_the_same_decay_at_every_token(size):
    inputs = tensors(0, 1, 300, 1, 32, 16, rate=0.3)
    inputs[3] = torch.full_like(inputs[3], size).requires_grad_()
    assert_like_reference("delta_scan", with_reset(), inputs)


@pytest.mark.parametrize("fading", FADING)
def test_long(fading):
    """Against the chunks in float64, which are the recurrence to 1e-9: that one would take a minute."""
    inputs, run = tensors(0, 1, 8192, 1, 17, 5, fading=fading), with_reset(resets(0, 1, 8192, 1e-3))
    high = [z.detach().double().requires_grad_() for z in inputs]
    wanted, found = run(*high), cpu(run)(*inputs)
    assert_near(floating(found), floating(wanted), 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


@pytest.mark.parametrize(("rate", "tolerance"), [(0.0, 2e-6), (1.0, 2e-6), (2.0, 1e-5)])
def test_the_same_key_again_and_again(rate, tolerance):
    """The system is as far from the identity as it can be. At a rate of 2 what is read is turned over."""
    inputs = tensors(0, 1, 100, 2, 17, 20)
    inputs[4] = inputs[4][:, :1].detach().expand_as(inputs[4]).requires_grad_()
    inputs[5] = (-rate * inputs[4]).detach().requires_grad_()
    assert_like_reference("delta_scan", with_reset(), inputs, tolerance)


@few
@given(time=st.integers(1, 40), values=st.integers(1, 3), seed=st.integers(0, 1000))
def test_one_key_feature(time, values, seed):
    assert_agrees(with_reset(), tensors(seed, 2, time, 2, 1, values), 4e-6, least=1.0)


def test_with_one_key_it_is_the_delta_rule():
    q, _, v, g, r, _, state = (z.detach() for z in tensors(0, 2, 70, 2, 20, 9))
    beta, reset = torch.rand(2, 70, 2, generator=torch.Generator().manual_seed(0)), resets(0, 2, 70, 0.05)
    weak = beta.unsqueeze(-1)
    found = dplr_scan(q, r, weak * v, g, -weak * g.exp() * r, r, state=state, reset=reset)
    assert_near(found, delta_scan(q, r, v, beta, g, state=state, reset=reset), 2e-6, "value")


def test_half_precision():
    low = [z.detach().bfloat16().requires_grad_() for z in tensors(0, 2, 100, 2, 33, 20)]
    high = [z.detach().double().requires_grad_() for z in low]
    found = cpu(with_reset())(*low)
    with backend("reference"):
        wanted = with_reset()(*high)
    assert (found[0].dtype, found[1].dtype) == (torch.bfloat16, torch.float32)
    pairs = zip([*floating(found), *gradients(found, low)], [*floating(wanted), *gradients(wanted, high)], strict=True)
    for a, b in pairs:
        assert ((a.double() - b).norm() / b.norm()).item() < 1e-2


@pytest.mark.parametrize("where", [[0], [0, 1], [15, 16], [5, 40, 41, 42], [99], list(range(100))])
def test_gradients_do_not_cross_a_reset(where):
    inputs = tensors(0, 1, 100, 2, 20, 9)
    reset = torch.zeros(1, 100, dtype=torch.bool)
    reset[:, where] = True
    o, _ = cpu(with_reset(reset))(*inputs)
    *found, of_state = torch.autograd.grad(o[:, where[-1] :].sum(), inputs)
    for gradient in found:
        assert not gradient[:, : where[-1]].any()
    assert found[0][:, where[-1] :].any()
    assert not of_state.any()
    for index in (3, 4):  # what fades or reads a memory that is empty
        assert not found[index][:, where].any()


def test_resets_clear_what_is_not_a_number():
    time, apart = 90, slice(20, 70)
    reset = torch.zeros(2, time, dtype=torch.bool)
    reset[:, [apart.start, apart.stop]] = True
    clean = [z.detach() for z in tensors(0, 2, time, 2, 20, 17)]
    spoilt = [z.clone() for z in clean]
    spoilt[0][0, 5], spoilt[1][:, 19], spoilt[2][1, 80], spoilt[3][0, 71] = torch.nan, torch.inf, torch.nan, torch.nan
    spoilt[4][1, 3], spoilt[5][0, 19], spoilt[-1][:] = torch.nan, torch.inf, torch.nan
    outputs, slopes = [], []
    for given_inputs in (clean, spoilt):
        leaves = [z.requires_grad_() for z in given_inputs]
        o, _ = cpu(with_reset(reset))(*leaves)
        outputs.append(o[:, apart])
        slopes.append([z[:, apart] for z in torch.autograd.grad(o[:, apart].sum(), leaves[:-1])])
    assert torch.equal(*outputs)
    assert all(map(torch.equal, *slopes))


@pytest.mark.parametrize("width", [16, 48])
def test_columns_of_values_apart(width):
    inputs, run = tensors(0, 2, 70, 2, 20, 70), with_reset(resets(0, 2, 70, 0.05))
    found = cpu(run)(*inputs)
    with mock.patch.object(module, "columns", return_value=width):
        divided = cpu(run)(*inputs)
        divided_gradients = gradients(divided, inputs)
    assert_near(floating(divided), floating(found), 1e-6, "value")
    assert_near(divided_gradients, gradients(found, inputs), 1e-6, "gradient")


@pytest.mark.parametrize(("time", "keys", "values"), [(1, 17, 3), (40, 16, 16), (70, 35, 20), (33, 1, 1)])
def test_stays_within_its_arrays(time, keys, values):
    assert_within_bounds(with_reset(resets(0, 2, time, 0.1)), tensors(0, 2, time, 3, keys, values))


def test_compiles_as_one_graph():
    assert_compiles(cpu(with_reset(resets(0, 2, 40), 0.3)), tensors(0, 2, 40, 2, 20, 17))


def test_the_operator_is_registered_whole():
    q, k, v, log_decay, read, write, state = tensors(0, 2, 40, 2, 20, 17)
    torch.library.opcheck(
        torch.ops.seriatim.cpu_delta_scan.default,
        (q, k, v, None, log_decay, read, write, state, resets(0, 2, 40), 0.3, True),
    )


def test_threads():
    assert_safe_in_threads(cpu(with_reset(resets(0, 3, 200, 0.01))), tensors(0, 3, 200, 4, 50, 40))


def test_keeps_a_state_a_segment():
    span = segment(32, 64, 2) * CHUNK
    kept = saved_bytes(cpu(with_reset()), tensors(0, 2, 3 * span, 3, 32, 64))
    assert kept == 4 * 2 * 3 * 3 * 32 * 64


def test_gradients_of_either_result_alone():
    inputs = tensors(0, 1, 40, 2, 20, 17)
    for index in (0, 1):
        found = torch.autograd.grad(cpu(with_reset())(*inputs)[index].sum(), inputs, materialize_grads=True)
        high = [z.detach().double().requires_grad_() for z in inputs]
        with backend("reference"):
            wanted = torch.autograd.grad(with_reset()(*high)[index].sum(), high, materialize_grads=True)
        assert_near(found, wanted, 2e-6, "gradient")


def test_second_derivatives_are_refused():
    inputs = tensors(0, 2, 9, 2, 4, 4)
    with pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
        torch.autograd.grad(cpu(with_reset())(*inputs)[0].square().sum(), inputs[0], create_graph=True)
