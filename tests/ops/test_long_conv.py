import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, few, floating, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops.long_conv import _smooth, long_conv

DIM = 3


@few
@given(
    time=st.sampled_from([0, 1, 2, 63, 64, 65, 100, 300]),
    taps=st.sampled_from([1, 2, 5, 64, 100, 300, 400]),
    chance=st.sampled_from([None, 0.02, 0.5, 1.0]),
    starts=st.booleans(),
    ragged=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_equation(time, taps, chance, starts, ragged, seed):
    u, kernel = normal(seed, 3, time, DIM), normal(seed + 1, DIM, taps)
    state = normal(seed + 2, 3, taps - 1, DIM) if starts else None
    reset = None if chance is None else resets(seed, 3, time, chance)
    lengths = torch.tensor([time, time // 2, 0]) if ragged else None

    def run():
        y, tail = long_conv(u, kernel, state=state, reset=reset, lengths=lengths)
        if lengths is not None:
            y = y.masked_fill((torch.arange(time) >= lengths[:, None])[..., None], 0.0)
        return y, tail

    assert_backends_agree(run, [u, kernel, *([state] if starts else [])])


@pytest.mark.parametrize("where", [[], [0], [0, 1], [63, 64], [5, 40, 41, 42], [99], list(range(100))])
def test_reset_is_a_new_sequence(where):
    kernel, state = normal(1, DIM, 90), normal(2, 2, 89, DIM)

    def run(u, state=None, reset=None):
        return long_conv(u, kernel, state=state, reset=reset)

    scans.assert_reset_begins_anew(run, [normal(0, 2, 100, DIM)], state, where)


@pytest.mark.parametrize("taps", [1, 20, 150])
def test_the_whole_is_its_pieces(taps):
    kernel, state = normal(1, DIM, taps), normal(2, 2, taps - 1, DIM)

    def run(u, state, reset):
        return long_conv(u, kernel, state=state, reset=reset)

    scans.assert_pieces_agree(run, [normal(0, 2, 100, DIM)], state, resets(1, 2, 100, 0.03))


@pytest.mark.parametrize("time", [1, 70])
def test_compiles_as_one_graph(time):
    reset, lengths = resets(0, 2, time), torch.tensor([time, time // 2])
    scans.assert_compiles(
        lambda u, kernel, state: long_conv(u, kernel, state=state, reset=reset, lengths=lengths),
        [normal(0, 2, time, DIM), normal(1, DIM, 90), normal(2, 2, 89, DIM)],
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, tolerance):
    scans.assert_rounds_well(
        lambda u, kernel, state: long_conv(u, kernel, state=state),
        [normal(0, 2, 300, DIM), normal(1, DIM, 250), normal(2, 2, 249, DIM)],
        dtype,
        tolerance,
    )


def test_lengths_of_transforms():
    assert [_smooth(length) for length in (1, 2, 7, 11, 17, 1025, 65537)] == [1, 2, 8, 12, 18, 1080, 65610]


def test_dtypes():
    y, state = long_conv(torch.ones(2, 5, 3).bfloat16(), torch.ones(3, 4).bfloat16())
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    found = long_conv(torch.ones(2, 5, 3).double(), torch.ones(3, 4).double())
    assert all(leaf.dtype == torch.float64 for leaf in floating(found))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 5)}, r"u has shape \(2, 5\); it must be \(batch, time, dim\)"),
        ({"kernel": torch.zeros(4, 3)}, r"kernel has shape \(4, 3\); it must be .* = \(3, taps\)"),
        ({"kernel": torch.zeros(3, 0)}, r"kernel has shape \(3, 0\); it must be \(dim, taps\) with at least 1 tap"),
        ({"state": torch.zeros(2, 4, 3)}, r"state has shape \(2, 4, 3\); it must be .* = \(2, 3, 3\)"),
        ({"reset": torch.zeros(2, 6, dtype=torch.bool)}, r"reset has shape \(2, 6\); it must be .* = \(2, 5\)"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths has dtype torch.float32; it must be torch.int64"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    good = {"u": torch.zeros(2, 5, 3), "kernel": torch.zeros(3, 4)}
    with pytest.raises(SeriatimError, match=message):
        long_conv(**{**good, **change})
