import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agreement import assert_backends_agree, assert_close, few, gradients, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops.lif_scan import lif_scan


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 30),
    features=st.lists(st.integers(1, 3), min_size=0, max_size=2),
    tau=st.sampled_from([1.0, 2.0, 3.5]),
    chance=st.sampled_from([None, 0.1, 1.0]),
    padded=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(batch, time, features, tau, chance, padded, seed):
    x, state = normal(seed, batch, time, *features), normal(seed + 1, batch, *features)
    reset = None if chance is None else resets(seed, batch, time, chance)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, time + 1, (batch,), generator=generator) if padded else None
    assert_backends_agree(
        lambda: lif_scan(2 * x + 0.5, tau=tau, slope=3.0, state=state, reset=reset, lengths=lengths), [x, state]
    )


def test_a_membrane_by_hand():
    x = torch.tensor([1.0, 1.5, 0.5, 4.0, -2.0], dtype=torch.float64).view(1, 5, 1)
    spikes, end = lif_scan(x)  # 0.5, 1 fires, 0.25, 2.125 fires, -1
    assert spikes.flatten().tolist() == [0, 1, 0, 1, 0]
    assert end.item() == -1


def test_gradients_are_those_of_the_surrogate():
    """Two tokens: through the first spike, and through the membrane that did not fire into the second."""
    x = torch.tensor([[0.8, 0.6]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(lif_scan(x)[0].sum(), x)
    v = torch.tensor([0.4, 0.5], dtype=torch.float64)
    soft = torch.sigmoid(4 * (v - 1))
    slope = 4 * soft * (1 - soft)
    assert_close([found], [torch.stack([slope[0] / 2 + slope[1] / 4, slope[1] / 2])[None]], 1e-12, "gradient")


def test_a_spike_stops_the_gradient():
    x = torch.tensor([[3.0, 0.1]], dtype=torch.float64, requires_grad=True)
    spikes, end = lif_scan(x)
    assert spikes.tolist() == [[1, 0]]
    assert torch.autograd.grad(end.sum(), x)[0].tolist() == [[0, 0.5]]


def test_reset_is_a_new_sequence_and_pieces_are_the_whole():
    x, state = normal(0, 2, 20, 3), normal(1, 2, 3)
    reset = torch.zeros(2, 20, dtype=torch.bool)
    reset[:, 7] = True
    found = lif_scan(2 * x, state=state, reset=reset)
    first, middle = lif_scan(2 * x[:, :7], state=state)
    second, end = lif_scan(2 * x[:, 7:])
    wanted = (torch.cat([first, second], 1), end + 0 * middle)
    assert_close(found, wanted, 1e-12, "value")
    assert_close(gradients(found, [x, state]), gradients(wanted, [x, state]), 1e-12, "gradient")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dtypes(dtype):
    spikes, end = lif_scan(normal(0, 2, 5, 3, dtype=dtype))
    assert (spikes.dtype, end.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 0.5}, "tau is 0.5; it must be at least 1"),
        ({"tau": float("nan")}, "tau is nan; it must be at least 1"),
        ({"threshold": 0.0}, "threshold is 0.0; it must be a finite number above 0"),
        ({"slope": -1.0}, "slope is -1.0; it must be a finite number above 0"),
        ({"state": torch.zeros(2, 4)}, "state has shape"),
        ({"reset": torch.zeros(2, 4)}, "reset has dtype"),
        ({"lengths": torch.tensor([6, 0])}, "lengths runs from 0 to 6"),
    ],
)
def test_what_is_wrong_is_named(options, message):
    with pytest.raises(SeriatimError, match=message):
        lif_scan(torch.zeros(2, 5, 3), **options)
