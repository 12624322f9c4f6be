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
from seriatim.kernels.cpu.diagonal_scan import block_size, forward
from seriatim.ops import backend
from seriatim.ops.diagonal_scan import diagonal_scan

DECAYS = [1.0, 0.3, 1e-4, 0.0]  # how far factors are from 1: steps of a log decay up to 50, or less


@pytest.fixture(autouse=True)
def _compiled():
    with backend("cpu"):
        yield


def tensors(seed, batch, time, *features, layout="plain", far=0.3, constant=False, pairs=False):
    """a of sizes e^-50 to 1, b and a state; with `pairs`, of complex numbers, whose parts are the last dimension."""
    last = (2,) if pairs else ()
    a = normal(seed, *(features if constant else (batch, time, *features)), *last).detach()
    size = (-50 * far * normal(seed + 1, *a.shape[: a.dim() - len(last)]).abs()).exp().detach()
    a = a / a.norm(dim=-1, keepdim=True) * size[..., None] if pairs else size
    b, state = normal(seed + 2, batch, time, *features, *last), normal(seed + 3, batch, *features, *last)
    return [laid_out(z, layout) if z.dim() else z.float().requires_grad_() for z in (a, b, state)]


def scan(a, b, state=None, reset=None):
    return diagonal_scan(a, b, state=state, reset=reset)


def with_reset(reset):
    return lambda *inputs: scan(*inputs, reset=reset)


def of_pairs(reset=None):
    """The op on complex numbers, as a function of real ones."""

    def run(*inputs):
        h, state = scan(*(torch.view_as_complex(z.contiguous()) for z in inputs), reset=reset)
        return torch.view_as_real(h), torch.view_as_real(state)

    return run


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 150),
    features=st.sampled_from([(), (1,), (5,), (16,), (3, 7), (67,), (2, 0)]),
    chance=st.sampled_from([None, 0.02, 0.3, 1.0]),
    far=st.sampled_from(DECAYS),
    constant=st.booleans(),
    starts=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(batch, time, features, chance, far, constant, starts, layout, seed):
    inputs = tensors(seed, batch, time, *features, layout=layout, far=far, constant=constant)[: 3 if starts else 2]
    reset = None if chance is None else resets(seed, time, batch, chance).mT
    assert_like_reference("diagonal_scan", with_reset(reset), inputs)


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 150),
    features=st.sampled_from([(), (1,), (5,), (16,), (3, 7), (67,)]),
    chance=st.sampled_from([None, 0.02, 0.3, 1.0]),
    far=st.sampled_from(DECAYS),
    constant=st.booleans(),
    starts=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference_in_complex_numbers(batch, time, features, chance, far, constant, starts, seed):
    inputs = tensors(seed, batch, time, *features, far=far, constant=constant, pairs=True)[: 3 if starts else 2]
    reset = None if chance is None else resets(seed, time, batch, chance).mT
    assert_like_reference("diagonal_scan", of_pairs(reset), inputs)


@pytest.mark.parametrize("far", DECAYS)
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_rounding_does_not_grow_with_time(far, pairs, constant):
    """In float64 the torch backend is the reference, to nine digits."""
    inputs = tensors(0, 1, 8192, 5, far=far, constant=constant, pairs=pairs)
    inputs[1] = (inputs[1].detach() + 0.1).requires_grad_()
    high = [z.detach().double().requires_grad_() for z in inputs]
    run = of_pairs() if pairs else scan
    wanted, found = run(*high), run(*inputs)
    assert_near(floating(found), floating(wanted), 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


@pytest.mark.parametrize("constant", [False, True])
def test_one_token(constant):
    """For few numbers the kernel is not worth calling, but right."""
    with mock.patch("seriatim.ops.diagonal_scan.LEAST", 0):
        for reset in (None, resets(1, 2, 1, 0.5)):
            assert_like_reference("diagonal_scan", with_reset(reset), tensors(0, 2, 1, 20, constant=constant))
            inputs = tensors(0, 2, 1, 20, constant=constant, pairs=True)
            assert_like_reference("diagonal_scan", of_pairs(reset), inputs[:2])
        assert_within_bounds(scan, tensors(0, 2, 1, 17, constant=constant))
    with mock.patch("seriatim.kernels.cpu.diagonal_scan.forward", wraps=forward) as called:
        scan(*tensors(0, 2, 1, 20))
        assert not called.called
        scan(*tensors(0, 2, 1, 1 << 16))
        assert called.called


def test_real_factors_of_complex_numbers():
    a, b, state = tensors(0, 2, 40, 3)[0], *tensors(0, 2, 40, 3, pairs=True)[1:]

    def run(a, b, state):
        h, last = scan(a, torch.view_as_complex(b), torch.view_as_complex(state))
        return torch.view_as_real(h), torch.view_as_real(last)

    assert_like_reference("diagonal_scan", run, [a, b, state])


def test_conjugates_that_are_not_written_out():
    """Their memory holds something else than they say."""
    a, b, state = (torch.view_as_complex(z.detach()) for z in tensors(0, 2, 40, 3, pairs=True))
    with backend("cpu"):
        wanted = scan(a.conj().resolve_conj(), b.conj().resolve_conj(), state.conj().resolve_conj())
        found = scan(a.conj(), b.conj(), state.conj())
        assert all(map(torch.equal, found, wanted))
        parts = [z.conj().imag for z in (a, b, state)]
        assert all(z.is_neg() for z in parts)
        assert all(map(torch.equal, scan(*parts), scan(*(z.resolve_neg() for z in parts))))


def test_half_precision():
    with backend("cpu"):
        assert_rounds_well(scan, tensors(0, 2, 100, 33, far=0.01), torch.bfloat16, 1e-2)


@pytest.mark.parametrize("pairs", [False, True])
def test_resets_clear_what_is_not_a_number(pairs):
    """Neither what came before nor the gradient of what comes after gets across."""
    apart = slice(60, 140)
    clean = [z.detach() for z in tensors(0, 2, 200, 20, pairs=pairs)]
    a, b, state = spoilt = [z.clone() for z in clean]
    a[0, 55], b[1, :50], state[0], a[1, 141], b[0, 150] = torch.nan, torch.inf, torch.nan, torch.nan, torch.inf
    assert_resets_part(of_pairs if pairs else with_reset, apart, clean, spoilt)


@pytest.mark.parametrize(("time", "features"), [(2, 17), (70, 5), (33, 131)])
@pytest.mark.parametrize("constant", [False, True])
def test_stays_within_its_arrays(time, features, constant):
    reset = resets(0, 2, time, 0.1)
    assert_within_bounds(with_reset(reset), tensors(0, 2, time, features, constant=constant))
    assert_within_bounds(of_pairs(reset), tensors(0, 2, time, features, constant=constant, pairs=True)[:2])


@pytest.mark.parametrize("constant", [False, True])
def test_compiles_as_one_graph(constant):
    reset = resets(0, 2, 40)
    assert_compiles(with_reset(reset), tensors(0, 2, 40, 2, 3, constant=constant))


def test_threads():
    assert_safe_in_threads(with_reset(resets(0, 3, 300, 0.01)), tensors(0, 3, 300, 150))
    assert_safe_in_threads(of_pairs(), tensors(0, 1, 300, 75, pairs=True))


@pytest.mark.parametrize("pairs", [False, True])
def test_keeps_the_output_and_no_more(pairs):
    a, b, _ = tensors(0, 2, 512, 8, pairs=pairs)
    kept = saved_bytes(of_pairs() if pairs else scan, [a, b])
    assert kept == b.numel() * b.element_size()


def test_second_derivatives_and_vmap_are_refused():
    a, b, _ = tensors(0, 2, 9, 4)
    with backend("cpu"):
        with pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
            torch.autograd.grad(scan(a, b)[0].square().sum(), a, create_graph=True)
        with pytest.raises(SeriatimError, match="no rule for vmap"):
            torch.vmap(lambda b: scan(a.detach(), b)[0])(torch.zeros(3, 2, 9, 4))


def test_items_are_as_wide_as_threads_and_the_cache_allow():
    with mock.patch("seriatim.kernels.cpu.diagonal_scan.caches", return_value=Caches(48 << 10, 2 << 20)):
        assert block_size(2, 500, 1) == 512
        assert block_size(2, 500, 2) == 512
        assert block_size(1, 512, 2) == block_size(3, 512, 2) == 256
        assert block_size(8, 512, 2) == 512
        assert block_size(1, 10_000, 1) == 512  # the first level holds no more
        assert block_size(1, 1, 8) == block_size(0, 0, 1) == 16
