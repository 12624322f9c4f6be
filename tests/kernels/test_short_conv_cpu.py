from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    LAYOUTS,
    assert_compiles,
    assert_like_reference,
    assert_safe_in_threads,
    assert_within_bounds,
    laid_out,
)

from agreement import few, normal, resets
from scans import assert_rounds_well, saved_bytes
from seriatim.core import ragged
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.short_conv import blocks
from seriatim.ops import backend
from seriatim.ops.short_conv import short_conv

op = import_module("seriatim.ops.short_conv")


@pytest.fixture(autouse=True)
def _compiled():
    with backend("cpu"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _always_compiled():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "LEAST", 0)
        yield


def tensors(seed, batch, time, dim, taps, layout="plain"):
    """x, weight, bias and a state."""
    shapes = [(batch, time, dim), (dim, taps), (dim,), (batch, taps - 1, dim)]
    return [laid_out(normal(seed + i, *shape), layout) for i, shape in enumerate(shapes)]


def with_options(biased=True, starts=True, reset=None, lengths=None):
    """The op on x, weight, and the bias and the state that there are. Outputs of the padding mean nothing: zeros."""

    def run(x, weight, *rest):
        bias, state = rest[0] if biased else None, rest[-1] if starts else None
        y, tail = short_conv(x, weight, bias, state=state, reset=reset, lengths=lengths)
        return (y if lengths is None else ragged.mask(y, ragged.real_tokens(lengths, x.size(1)))), tail

    return run


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 70),
    dim=st.sampled_from([0, 1, 3, 16, 17, 70]),
    taps=st.sampled_from([1, 2, 3, 4, 5, 9]),
    biased=st.booleans(),
    starts=st.booleans(),
    chance=st.sampled_from([None, 0.05, 0.5, 1.0]),
    padded=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(batch, time, dim, taps, biased, starts, chance, padded, layout, seed):
    x, weight, bias, state = tensors(seed, batch, time, dim, taps, layout)
    inputs = [x, weight, *([bias] if biased else []), *([state] if starts else [])]
    reset = None if chance is None else resets(seed, batch, time, chance)
    lengths = torch.randint(0, time + 1, (batch,), generator=torch.Generator().manual_seed(seed)) if padded else None
    assert_like_reference("short_conv", with_options(biased, starts, reset, lengths), inputs)


@pytest.mark.parametrize("dim", [130, 2100])
def test_several_items_along_and_across(dim):
    batch, time, taps = 2, 700, 4
    tokens, features = blocks(batch, time, dim, taps)
    assert time > 2 * tokens
    assert dim < 1000 or dim > 2 * features
    run = with_options(reset=resets(0, batch, time, 0.01), lengths=torch.tensor([time - tokens, time]))
    assert_like_reference("short_conv", run, tensors(0, batch, time, dim, taps))


def test_long():
    run = with_options(reset=resets(0, 1, 8192, 0.001))
    assert_like_reference("short_conv", run, tensors(0, 1, 8192, 3, 4), 6e-7)  # sums of 8,192 terms in float32


def test_half_precision():
    with backend("cpu"):
        assert_rounds_well(short_conv, [z.double() for z in tensors(0, 2, 100, 33, 4)][:3], torch.bfloat16, 1e-2)


def test_resets_and_padding_clear_what_is_not_a_number():
    x, weight, bias, state = (z.detach() for z in tensors(0, 2, 40, 20, 4))
    reset, lengths = torch.zeros(2, 40, dtype=torch.bool), torch.tensor([30, 40])
    reset[:, 20] = True
    clean = [x.clone(), weight, bias, state]
    x[:, :20], x[0, 30:], state[:] = torch.nan, torch.inf, torch.nan
    for z in (clean[0], x):
        z.requires_grad_()
    with backend("cpu"):
        found, wanted = ([z[:, 20:30] if z.size(1) == 40 else z for z in short_conv(*given[:3], state=given[3],
                          reset=reset, lengths=lengths)] for given in ([x, weight, bias, state], clean))  # fmt: skip
        (gradient,) = torch.autograd.grad(found[0].sum(), x)
    assert all(map(torch.equal, found, wanted))
    assert gradient.isfinite().all()


@pytest.mark.parametrize(("time", "dim", "taps"), [(1, 17, 4), (37, 35, 4), (50, 70, 6), (3, 5, 9)])
def test_stays_within_its_arrays(time, dim, taps):
    run = with_options(reset=resets(0, 2, time, 0.1), lengths=torch.tensor([time, time // 2]))
    assert_within_bounds(run, tensors(0, 2, time, dim, taps))


def test_compiles_as_one_graph():
    run = with_options(reset=resets(0, 2, 40), lengths=torch.tensor([40, 7]))
    assert_compiles(run, tensors(0, 2, 40, 33, 4))


def test_threads():
    assert_safe_in_threads(with_options(reset=resets(0, 3, 900, 0.01)), tensors(0, 3, 900, 100, 4))


def test_keeps_nothing_but_its_inputs():
    inputs = tensors(0, 2, 500, 33, 4)
    assert saved_bytes(with_options(), inputs) == 0


def test_second_derivatives_and_vmap_are_refused():
    x, weight, *_ = tensors(0, 2, 9, 5, 4)
    with backend("cpu"), pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
        torch.autograd.grad(short_conv(x, weight)[0].square().sum(), x, create_graph=True)
    with backend("cpu"), pytest.raises(SeriatimError, match="no rule for vmap; use"):
        torch.vmap(lambda z: short_conv(z, weight)[0])(x[None])


def test_few_numbers_are_left_to_pytorch(monkeypatch):
    monkeypatch.setattr(op, "LEAST", 100)
    x, weight, *_ = tensors(0, 1, 20, 5, 4)
    assert "seriatim" in short_conv(x, weight)[0].grad_fn.name()
    assert "seriatim" not in short_conv(x[:, :19], weight)[0].grad_fn.name()


def test_blocks_fit_the_first_cache():
    for dim, taps in [(1, 1), (512, 4), (4096, 4), (4096, 16), (7, 300)]:
        tokens, features = blocks(2, 512, dim, taps)
        assert 1 <= features <= max(dim, 1)
        assert tokens >= 1
    assert blocks(2, 512, 4096, 4)[1] > blocks(2, 512, 4096, 16)[1]
    assert blocks(64, 8192, 512, 4)[0] == 8192  # no more sums than rows of the batch
