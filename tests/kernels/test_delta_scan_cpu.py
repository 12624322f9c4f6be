"""delta_scan under each kind of decay, and dplr_scan, which runs on the same kernels."""

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
    assert_resets_part,
    assert_safe_in_threads,
    assert_within_bounds,
    cpu,
    laid_out,
)

from agreement import few, floating, gradients, normal, resets
from scans import assert_rounds_well, saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu import delta_scan as module
from seriatim.kernels.cpu.caches import Caches
from seriatim.kernels.cpu.delta_scan import columns, segment
from seriatim.kernels.cpu.source.delta_layout import CHUNK
from seriatim.ops import backend
from seriatim.ops.delta_scan import delta_scan
from seriatim.ops.dplr_scan import dplr_scan

KINDS = ("none", "head", "key")
ALL = (*KINDS, "dplr")
DECAY = {"head": 4, "key": 4, "dplr": 3}  # which argument
FADING = {"slow": 1e-4, "usual": 0.1, "strong": 5.0}
EXTREMES = [0.0, -1e-3, -0.7, -50.0, -1e4, float("-inf"), 0.1]


def tensors(kind, seed, batch, time, heads, keys, values, layout="plain", fading="usual", strength=1.0):
    """The arguments of `op`, and a state. Of the delta rule keys have that length, and beta goes from 0 to 2. Of "dplr"
    what is read is of length 1, and written is its opposite, each feature at a rate of its own up to that strength."""
    shapes = [(keys,), (keys,), (values,), (keys,), (keys,), (keys,)]
    if kind != "dplr":
        shapes[3:] = [(), (keys,) if kind == "key" else ()]
    q, k, v, *others = (normal(seed + i, batch, time, heads, *shape).detach() for i, shape in enumerate(shapes))
    if kind == "dplr":
        g, r, a = others
        r = torch.nn.functional.normalize(r, dim=-1)
        found = [q, k, v, -FADING[fading] * g.exp(), r, -strength * a.sigmoid() * r]
    else:
        beta, g = others
        found = [q, strength * torch.nn.functional.normalize(k, dim=-1), v, 2 * beta.sigmoid()]
        found += [] if kind == "none" else [-FADING[fading] * g.exp()]
    return [laid_out(z, layout) for z in (*found, normal(seed + 9, batch, heads, keys, values))]


def op(kind):
    return dplr_scan if kind == "dplr" else delta_scan


def with_reset(kind, reset=None, scale=1.0):
    """The op on tensors of which the last is the state."""
    return lambda *z: op(kind)(*z[:-1], scale=scale, state=z[-1], reset=reset)


@pytest.mark.parametrize("kind", ALL)
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
    strength=st.sampled_from([0.0, 0.3, 1.0]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(
    kind, batch, time, heads, keys, values, chance, scale, fading, strength, layout, seed
):
    inputs = tensors(kind, seed, batch, time, heads, keys, values, layout, fading, strength)
    assert_agrees(with_reset(kind, None if chance is None else resets(seed, batch, time, chance), scale), inputs)


@pytest.mark.parametrize("kind", ALL)
@few
@given(time=st.integers(1, 70), reset=st.booleans(), seed=st.integers(0, 1000))
def test_without_a_state(kind, time, reset, seed):
    begins = resets(seed, 2, time) if reset else None
    *inputs, _ = tensors(kind, seed, 2, time, 2, 20, 9)
    assert_agrees(lambda *z: op(kind)(*z, reset=begins), inputs)


@pytest.mark.parametrize("kind", DECAY)
@few
@given(time=st.integers(1, 70), reset=st.booleans(), seed=st.integers(0, 1000))
def test_any_decay(kind, time, reset, seed):
    inputs = tensors(kind, seed, 2, time, 2, 20, 9)
    drawn = torch.randint(len(EXTREMES), inputs[DECAY[kind]].shape, generator=torch.Generator().manual_seed(seed))
    inputs[DECAY[kind]] = torch.tensor(EXTREMES)[drawn].requires_grad_()
    assert_agrees(with_reset(kind, resets(seed, 2, time) if reset else None), inputs)


@pytest.mark.parametrize("kind", DECAY)
@pytest.mark.parametrize("size", EXTREMES[:-1])
def test_the_same_decay_at_every_token(kind, size):
    inputs = tensors(kind, 0, 1, 300, 1, 32, 16)
    inputs[DECAY[kind]] = torch.full_like(inputs[DECAY[kind]], size).requires_grad_()
    assert_like_reference("delta_scan", with_reset(kind), inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_decays_hardly_below_one_for_long(kind):
    """The decay over a chunk is wrong by less than its tokens' decays together: the memory here is 300 tokens long."""
    inputs = tensors(kind, 0, 1, 1000, 1, 64, 32)
    if kind != "none":
        inputs[4] = torch.full_like(inputs[4], -0.003).requires_grad_()
    assert_like_reference("delta_scan", with_reset(kind), inputs, 1.2e-6)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("fading", FADING)
def test_long(kind, fading):
    """Against the chunks in float64, which are the recurrence to 1e-9: that one would take a minute."""
    inputs, run = tensors(kind, 0, 1, 8192, 1, 17, 5, fading=fading), with_reset(kind, resets(0, 1, 8192, 1e-3))
    high = [z.detach().double().requires_grad_() for z in inputs]
    wanted, found = run(*high), cpu(run)(*inputs)
    assert_near(floating(found), floating(wanted), 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_keys_so_long_that_the_memory_grows(kind):
    """Each write overshoots by a little: the state is some 1e5 at the end, in the recurrence as well."""
    inputs = tensors(kind, 0, 1, 80, 2, 8, 8, fading="slow", strength=1.2)
    inputs[3] = torch.full_like(inputs[3], 1.7).requires_grad_()
    with backend("reference"):
        assert with_reset(kind)(*inputs)[1].abs().max() > 100
    assert_like_reference("delta_scan", with_reset(kind), inputs, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("beta", "tolerance"), [(0.0, 2e-6), (1.0, 2e-6), (2.0, 1e-5)])
def test_the_same_key_again_and_again(kind, beta, tolerance):
    """The system is as far from the identity as it can be. At a beta of 2 nothing is forgotten, no error either."""
    inputs = tensors(kind, 0, 1, 100, 2, 17, 20)
    inputs[1] = inputs[1][:, :1].detach().expand_as(inputs[1]).requires_grad_()
    inputs[3] = torch.full_like(inputs[3], beta).requires_grad_()
    assert_like_reference("delta_scan", with_reset(kind), inputs, tolerance)


@pytest.mark.parametrize("kind", ALL)
@few
@given(time=st.integers(1, 40), values=st.integers(1, 3), seed=st.integers(0, 1000))
def test_one_key_feature(kind, time, values, seed):
    """Every key is the same but for its sign. What a state still says after some of these is far below what is added up
    to find it, so errors are relative to 1 here, and not to less."""
    assert_agrees(with_reset(kind), tensors(kind, seed, 2, time, 2, 1, values), 4e-6, least=1.0)


@pytest.mark.parametrize("kind", ALL)
def test_half_precision(kind):
    with backend("cpu"):
        assert_rounds_well(with_reset(kind), tensors(kind, 0, 2, 100, 2, 33, 20), torch.bfloat16, 1e-2)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("where", [[0], [0, 1], [15, 16], [5, 40, 41, 42], [99], list(range(100))])
def test_gradients_do_not_cross_a_reset(kind, where):
    inputs = tensors(kind, 0, 1, 100, 2, 20, 9)
    reset = torch.zeros(1, 100, dtype=torch.bool)
    reset[:, where] = True
    o, _ = cpu(with_reset(kind, reset))(*inputs)
    *found, of_state = torch.autograd.grad(o[:, where[-1] :].sum(), inputs)
    live = 3 if kind == "dplr" else 4
    assert all(not gradient[:, : where[-1]].any() for gradient in found)
    assert all(gradient[:, where[-1] :].any() for gradient in found[:live])
    assert not any(gradient[:, where].any() for gradient in found[live:5])  # what fades or reads a memory that is empty
    assert not of_state.any()


@pytest.mark.parametrize("kind", ALL)
def test_resets_clear_what_is_not_a_number(kind):
    time, apart = 90, slice(20, 70)
    clean = [z.detach() for z in tensors(kind, 0, 2, time, 2, 20, 17)]
    spoilt = [z.clone() for z in clean]
    spoilt[0][0, 5], spoilt[1][:, 19], spoilt[2][1, 80], spoilt[3][0, 71] = torch.nan, torch.inf, torch.nan, torch.nan
    if kind == "dplr":
        spoilt[4][1, 3], spoilt[5][0, 19] = torch.nan, torch.inf
    spoilt[-1][:] = torch.nan
    assert_resets_part(lambda reset: with_reset(kind, reset), apart, clean, spoilt)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("width", [16, 48])
def test_columns_of_values_apart(kind, width):
    inputs, run = tensors(kind, 0, 2, 70, 2, 20, 70), with_reset(kind, resets(0, 2, 70, 0.05))
    found = cpu(run)(*inputs)
    with mock.patch.object(module, "columns", return_value=width):
        divided = cpu(run)(*inputs)
        divided_gradients = gradients(divided, inputs)
    assert_near(floating(divided), floating(found), 1e-6, "value")
    assert_near(divided_gradients, gradients(found, inputs), 1e-6, "gradient")


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("time", "keys", "values"), [(1, 17, 3), (40, 16, 16), (70, 35, 20), (33, 1, 1)])
def test_stays_within_its_arrays(kind, time, keys, values):
    assert_within_bounds(with_reset(kind, resets(0, 2, time, 0.1)), tensors(kind, 0, 2, time, 3, keys, values))


@pytest.mark.parametrize("kind", ALL)
def test_compiles_as_one_graph(kind):
    assert_compiles(cpu(with_reset(kind, resets(0, 2, 40), 0.3)), tensors(kind, 0, 2, 40, 2, 20, 17))


@pytest.mark.parametrize("kind", ALL)
def test_the_operator_is_registered_whole(kind):
    q, k, v, *others, state = tensors(kind, 0, 2, 40, 2, 20, 17)
    given = [None, *others] if kind == "dplr" else [*others, None, None, None][:4]
    if kind == "head":
        given[1] = given[1].detach().unsqueeze(-1).requires_grad_()
    inputs = (q, k, v, *given, state, resets(0, 2, 40), 0.3, True)
    torch.library.opcheck(torch.ops.seriatim.cpu_delta_scan.default, inputs)


@pytest.mark.parametrize("kind", ALL)
def test_threads(kind):
    assert_safe_in_threads(cpu(with_reset(kind, resets(0, 3, 200, 0.01))), tensors(kind, 0, 3, 200, 4, 50, 40))


@pytest.mark.parametrize("kind", ALL)
def test_keeps_a_state_a_segment(kind):
    span = segment(32, 64, 2 if kind == "dplr" else 1) * CHUNK
    kept = saved_bytes(cpu(with_reset(kind)), tensors(kind, 0, 2, 3 * span, 3, 32, 64))
    assert kept == 4 * 2 * 3 * 3 * 32 * 64


def test_keeps_nothing_for_a_backward_pass_that_will_not_come():
    q, k, v, beta, state = (z.detach() for z in tensors("none", 0, 1, 40, 1, 4, 4))
    assert module.forward(q, k, v, beta, None, None, None, state, None, 1.0, False)[2].numel() == 0


@pytest.mark.parametrize("kind", ["key", "dplr"])
def test_gradients_of_either_result_alone(kind):
    inputs = tensors(kind, 0, 1, 40, 2, 20, 17)
    for index in (0, 1):
        found = torch.autograd.grad(cpu(with_reset(kind))(*inputs)[index].sum(), inputs, materialize_grads=True)
        high = [z.detach().double().requires_grad_() for z in inputs]
        with backend("reference"):
            wanted = torch.autograd.grad(with_reset(kind)(*high)[index].sum(), high, materialize_grads=True)
        assert_near(found, wanted, 2e-6, "gradient")


@pytest.mark.parametrize("kind", ["head", "dplr"])
def test_second_derivatives_and_vmap_are_refused(kind):
    inputs = tensors(kind, 0, 2, 9, 2, 4, 4)
    with pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
        torch.autograd.grad(cpu(with_reset(kind))(*inputs)[0].square().sum(), inputs[0], create_graph=True)
    with pytest.raises(SeriatimError, match="no rule for vmap"):
        torch.vmap(lambda q: cpu(with_reset(kind))(q, *inputs[1:])[0])(torch.stack([inputs[0], inputs[0]]))


def test_a_segment_fits_the_second_cache():
    with mock.patch.object(module, "caches", return_value=Caches(32 << 10, 2 << 20)):
        for writers in (1, 2):
            small, middle, large, huge = (segment(size, size, writers) for size in (16, 64, 256, 1024))
            assert small == 16 >= middle > large >= huge == 1
        assert segment(64, 64, 1) >= segment(64, 64, 2)


def test_columns_are_divided_where_threads_would_have_nothing_to_do():
    assert columns(4, 64, 2) == columns(8, 64, 8) == 64
    assert columns(1, 64, 2) == 32
    assert columns(2, 64, 16) == columns(1, 64, 100) == 16
    assert columns(1, 70, 3) == 32
    assert columns(1, 5, 8) == 5
    assert columns(0, 0, 2) == 0
