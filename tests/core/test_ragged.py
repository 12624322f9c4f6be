import pytest
import torch

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError


def test_real_tokens_and_mask():
    real = ragged.real_tokens(torch.tensor([0, 2, 3]), 3)
    assert real.tolist() == [[False] * 3, [True, True, False], [True] * 3]
    x = torch.full((3, 3, 2), float("nan"))
    x[1, :2], x[2] = 1.0, 2.0
    assert ragged.mask(x, real).sum().item() == 4 + 12


def test_positions_restart_at_resets():
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[1, [0, 3, 4]] = True
    start = torch.tensor([10, 7])
    assert ragged.positions(reset, start, 6).tolist() == [[10, 11, 12, 13, 14, 15], [0, 1, 2, 0, 0, 1]]
    assert ragged.positions(None, start, 2).tolist() == [[10, 11], [7, 8]]
    assert ragged.segments(reset).tolist() == [[0] * 6, [1, 1, 1, 2, 3, 3]]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([1.0, 2.0]), "dtype"),
        (torch.tensor([1, 2, 3]), "shape"),
        (torch.tensor([1, 5]), "from 1 to 5"),
        (torch.tensor([-1, 4]), "from -1 to 4"),
    ],
)
def test_bad_lengths_are_named(lengths, message):
    with pytest.raises(SeriatimError, match=f"lengths.*{message}"):
        ragged.check_lengths(lengths, 2, 4)


@pytest.mark.parametrize("reset", [torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.bool)])
def test_bad_resets_are_named(reset):
    with pytest.raises(SeriatimError, match="reset has"):
        ragged.check_reset(reset, 2, 4)
