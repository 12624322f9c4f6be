from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    LAYOUTS,
    assert_agrees,
    assert_compiles,
    assert_like_reference,
    assert_safe_in_threads,
    assert_within_bounds,
    laid_out,
)

from agreement import few, gradients, normal
from scans import assert_rounds_well, saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu import grid_scan as module
from seriatim.kernels.cpu.grid_scan import segment_rows
from seriatim.ops import backend, grid_scan

EXTREMES = ("none", "shut", "open")
FLIPS = ((), (1,), (2,), (1, 2))


def propagating(seed, *shape):
    """P-mode: every angle, decays of both signs."""
    angle, decay = torch.sigmoid(normal(seed, *shape)), torch.tanh(3 * normal(seed + 1, *shape))
    column = decay.unsqueeze(-1) * torch.stack([angle, 1 - angle], -1)
    return column.unsqueeze(-1).expand(*column.shape, 2)


def distributing(seed, *shape):
    """D-mode: no turn from the right downwards."""
    return torch.tanh(2 * normal(seed, *shape, 2, 2)) * torch.tensor([[1.0, 1.0], [0.0, 1.0]])


MODES = {"P": propagating, "D": distributing}


def tensors(mode, seed, batch, rows, columns, heads, keys, values, layout="plain", extreme="none"):
    """q, k, v, source, transition, mark, direct, and what enters at the left and at the top.

    Shut gates are 0. Open ones are 1, or halves in the P-mode: what is handed on then neither fades nor grows.
    """
    shape = (batch, rows, columns, heads)
    q, k, v = (normal(seed + i, *shape, size) for i, size in enumerate((keys, keys, values)))
    source, mark = normal(seed + 3, *shape, 2), normal(seed + 4, *shape, 2)
    transition, direct = MODES[mode](seed + 5, *shape), normal(seed + 7, *shape)
    if extreme == "shut":
        source, mark, transition = (torch.zeros_like(z) for z in (source, mark, transition))
    elif extreme == "open":
        source, mark = torch.ones_like(source), torch.ones_like(mark)
        transition = torch.full_like(transition, 0.5) if mode == "P" else torch.ones_like(transition).triu()
    state = [normal(seed + 8 + i, batch, side, heads, keys, values) for i, side in enumerate((rows, columns))]
    return [laid_out(z, layout) for z in (q, k, v, source, transition, mark, direct, *state)]


def run(q, k, v, source, transition, mark, *others, flips=()):
    """The op with a direct gate and a state, or either, or none."""
    direct = others[0] if len(others) % 2 else None
    state = tuple(others[-2:]) if len(others) > 1 else None
    return grid_scan(q, k, v, source, transition, mark, direct, scale=0.7, state=state, flips=flips)


@pytest.mark.parametrize("mode", MODES)
@few
@given(
    batch=st.integers(0, 2),
    rows=st.sampled_from([0, 1, 2, 5, 9]),
    columns=st.sampled_from([0, 1, 3, 8]),
    heads=st.integers(1, 2),
    keys=st.sampled_from([1, 3, 17]),
    values=st.sampled_from([1, 16, 19, 33]),
    given=st.sampled_from([6, 7, 9]),
    layout=st.sampled_from(LAYOUTS),
    extreme=st.sampled_from(EXTREMES),
    flips=st.sampled_from(FLIPS),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(
    mode, batch, rows, columns, heads, keys, values, given, layout, extreme, flips, seed
):
    inputs = tensors(mode, seed, batch, rows, columns, heads, keys, values, layout, extreme)
    assert_agrees(partial(run, flips=flips), inputs[:given])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_both_modes_with_any_gates(mode, extreme):
    assert_like_reference("grid_scan", run, tensors(mode, 0, 2, 9, 11, 2, 16, 24, extreme=extreme))


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize("rows_at_once", [1, 3, 8])
def test_segments_of_rows_from_every_corner(monkeypatch, rows_at_once, flips):
    monkeypatch.setattr(module, "segment_rows", lambda *sizes: rows_at_once)
    assert_like_reference("grid_scan", partial(run, flips=flips), tensors("D", 0, 1, 8, 5, 2, 6, 20))


def test_long():
    assert_like_reference("grid_scan", run, tensors("P", 0, 1, 40, 35, 1, 4, 3))


def test_half_precision():
    with backend("cpu"):
        assert_rounds_well(run, tensors("P", 0, 2, 6, 6, 2, 16, 16)[:7], torch.bfloat16, 1e-2)


def test_the_state_may_be_left_out():
    inputs = tensors("D", 0, 2, 5, 6, 2, 4, 20)[:6]
    (whole, _), (found, state) = grid_scan(*inputs), grid_scan(*inputs, keep_state=False)
    assert state is None
    assert torch.equal(found, whole)
    assert all(map(torch.equal, gradients(found, inputs), gradients(whole, inputs)))


@pytest.mark.parametrize(("rows", "columns", "keys", "values"), [(1, 1, 1, 1), (3, 5, 7, 17), (9, 4, 16, 16)])
def test_stays_within_its_arrays(rows, columns, keys, values):
    assert_within_bounds(run, tensors("P", 0, 2, rows, columns, 2, keys, values))


def test_compiles_as_one_graph():
    assert_compiles(run, tensors("P", 0, 2, 4, 5, 2, 6, 20))


def test_threads():
    assert_safe_in_threads(run, tensors("D", 0, 3, 9, 9, 4, 16, 16))


def test_keeps_nothing_but_its_arguments():
    inputs = tensors("P", 0, 2, 8, 8, 2, 8, 16)[:6]
    kept = saved_bytes(lambda *z: grid_scan(*z, keep_state=False), inputs)
    assert kept == 0


def test_second_derivatives_are_refused():
    inputs = tensors("P", 0, 1, 3, 3, 1, 2, 2)[:6]
    with pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
        torch.autograd.grad(grid_scan(*inputs)[0].square().sum(), inputs[2], create_graph=True)


def test_a_segment_fits_the_second_cache():
    assert segment_rows(64, 9, 16) >= segment_rows(64, 9, 64) >= segment_rows(64, 64, 64) == 8
    assert segment_rows(3, 2, 1) == 3
