import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, floating, gradients, normal, resets
from seriatim.core import ragged
from seriatim.core.errors import SeriatimError
from seriatim.ops.short_conv import short_conv


def arguments(seed, batch, time, dim=3, taps=4):
    """x, weight, bias and a state."""
    return [
        normal(seed, batch, time, dim),
        normal(seed + 1, dim, taps),
        normal(seed + 2, dim),
        normal(seed + 3, batch, taps - 1, dim),
    ]


def convolve(x, weight, bias, state, reset=None, lengths=None):
    return short_conv(x, weight, bias, state=state, reset=reset, lengths=lengths)


def with_weights(weight, bias):
    """The op as a function of what runs along time."""

    def run(x, state=None, reset=None):
        return convolve(x, weight, bias, state, reset)

    return run


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 12),
    dim=st.integers(0, 3),
    taps=st.integers(1, 5),
    biased=st.booleans(),
    chance=st.sampled_from([None, 0.2, 0.5, 1.0]),
    starts=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_loop(batch, time, dim, taps, biased, chance, starts, seed):
    x, weight, bias, state = arguments(seed, batch, time, dim, taps)
    bias, state = bias if biased else None, state if starts else None
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [z for z in (x, weight, bias, state) if z is not None]
    assert_backends_agree(lambda: convolve(x, weight, bias, state, reset), inputs)


@few
@given(
    time=st.integers(0, 12),
    taps=st.integers(1, 5),
    chance=st.sampled_from([None, 0.2, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_lengths_agree_with_the_loop(time, taps, chance, seed):
    tensors = arguments(seed, 4, time, 2, taps)
    reset = None if chance is None else resets(seed, 4, time, chance)
    lengths = torch.randint(0, time + 1, (4,), generator=torch.Generator().manual_seed(seed))

    def run():
        y, tail = convolve(*tensors, reset, lengths)
        return ragged.mask(y, ragged.real_tokens(lengths, time)), tail

    assert_backends_agree(run, tensors)


def test_lengths_are_as_if_the_padding_were_not_there():
    x, weight, bias, state = arguments(0, 4, 9)
    lengths, reset = torch.tensor([0, 2, 5, 9]), resets(0, 4, 9, 0.3)
    padded = ragged.mask(x.detach(), ragged.real_tokens(lengths, 9), float("nan")).requires_grad_()
    y, tail = convolve(padded, weight, bias, state, reset, lengths)
    for row, length in enumerate(lengths):
        part = slice(row, row + 1)
        alone = convolve(x[part, :length], weight, bias, state[part], reset[part, :length])
        assert_close([y[part, :length], tail[part]], alone, 1e-14, "value")
    assert all(gradient.isfinite().all() for gradient in gradients((y, tail), [padded, weight, bias, state]))


def test_equals_the_library_convolution():
    x, weight, bias, state = arguments(0, 2, 40)
    wanted = F.conv1d(torch.cat([state, x], 1).mT, weight.unsqueeze(1), bias, groups=3).mT
    assert_close([convolve(x, weight, bias, state)[0]], [wanted], 1e-14, "value")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 6e-3)])
def test_lower_precision(dtype, tolerance):
    scans.assert_rounds_well(convolve, arguments(0, 2, 100), dtype, tolerance)


@pytest.mark.parametrize("where", [[], [0], [0, 1], [5, 7, 8], [97], [99], list(range(100))])
def test_reset_is_a_new_sequence(where):
    x, weight, bias, state = arguments(0, 2, 100)
    scans.assert_reset_begins_anew(with_weights(weight, bias), [x], state, where)


def test_the_whole_is_its_pieces():
    x, weight, bias, state = arguments(0, 2, 100)
    reset = resets(1, 2, 100, 0.1)
    scans.assert_pieces_agree(with_weights(weight, bias), [x], state, reset)
    scans.assert_pieces_agree(with_weights(weight, bias), [x], state, reset, [1] * 6 + [94])


@pytest.mark.parametrize("time", [1, 9])
@pytest.mark.parametrize("padded", [False, True])
def test_compiles_as_one_graph(time, padded):
    reset, lengths = resets(0, 2, time), torch.tensor([1, time]) if padded else None
    scans.assert_compiles(lambda *z: convolve(*z, reset, lengths), arguments(0, 2, time))


def test_strides_do_not_matter():
    scans.assert_strides_do_not_matter(convolve, arguments(0, 2, 40))


def test_gradients_of_gradients():
    assert torch.autograd.gradgradcheck(lambda *z: convolve(*z, resets(0, 1, 6)), arguments(0, 1, 6, 2))


@pytest.mark.parametrize("lengths", [None, torch.tensor([50, 100])])
def test_the_state_holds_no_more_than_itself(lengths):
    state = convolve(*arguments(0, 2, 100), lengths=lengths)[1]
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_dtypes():
    x, weight, bias, state = (z.detach() for z in arguments(0, 2, 5))
    y, tail = convolve(x.bfloat16(), weight.bfloat16(), None, None)
    assert (y.dtype, tail.dtype) == (torch.bfloat16, torch.float32)
    assert all(leaf.dtype == torch.float64 for leaf in floating(convolve(x, weight, bias, state)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x has shape \(2, 3\); it must be \(batch, time, dim\)"),
        ({"x": torch.zeros(2, 5, 3).long()}, "x has dtype torch.int64; it must be floating"),
        ({"weight": torch.zeros(4, 3)}, r"weight has shape \(4, 3\); it must be \(dim, taps\) = \(3, taps\)"),
        ({"weight": torch.zeros(3, 0)}, r"weight has shape \(3, 0\); it must be .* at least 1 tap"),
        ({"bias": torch.zeros(4)}, r"bias has shape \(4,\); it must be \(dim\) = \(3\)"),
        ({"state": torch.zeros(2, 4, 3)}, r"state has shape \(2, 4, 3\); it must be \(batch, 3, dim\) = \(2, 3, 3\)"),
        ({"reset": torch.zeros(2, 6, dtype=torch.bool)}, r"reset has shape \(2, 6\); it must be .* = \(2, 5\)"),
        ({"lengths": torch.tensor([1, 6])}, "lengths runs from 1 to 6; it must stay within 0 and time = 5"),
        ({"lengths": torch.tensor([1.0, 2.0])}, "lengths has dtype torch.float32"),
        ({"lengths": torch.tensor([1])}, r"lengths has shape \(1,\); it must be \(batch,\) = \(2,\)"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    good = {"x": torch.zeros(2, 5, 3), "weight": torch.zeros(3, 4)}
    with pytest.raises(SeriatimError, match=message):
        short_conv(**{**good, **change})
