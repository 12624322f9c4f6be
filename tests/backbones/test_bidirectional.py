import pytest
import torch

from seriatim import build
from seriatim.backbones.bidirectional import reverse
from seriatim.core.errors import SeriatimError


def packed():
    reset = torch.zeros(3, 9, dtype=torch.bool)
    reset[0, [0, 3, 4]] = reset[1, 8] = True
    return reset, torch.tensor([7, 9, 0])


def test_each_document_is_reversed_where_it_stands():
    reset, lengths = packed()
    x = torch.arange(9).expand(3, 9)
    assert reverse(x).tolist() == [list(range(8, -1, -1))] * 3
    assert reverse(x, reset)[0].tolist() == [2, 1, 0, 3, 8, 7, 6, 5, 4]
    both = [[2, 1, 0, 3, 6, 5, 4, 7, 8], [7, 6, 5, 4, 3, 2, 1, 0, 8], list(range(9))]
    assert reverse(x, reset & (x < lengths[:, None]), lengths).tolist() == both
    assert reverse(x, None, torch.tensor([2, 9, 1]))[0].tolist() == [1, 0, 2, 3, 4, 5, 6, 7, 8]


def test_reversing_twice_changes_nothing():
    reset, lengths = packed()
    x = torch.randn(3, 9, 2)
    assert torch.equal(reverse(reverse(x, reset, lengths), reset, lengths), x)


@pytest.mark.parametrize("combine", ["sum", "concat"])
def test_a_document_is_both_directions_by_hand(combine):
    mixer = build("bidirectional", dim=8, inner="gru", combine=combine).double()
    x, (reset, lengths) = torch.randn(3, 9, 8, dtype=torch.float64), packed()
    y, state = mixer(x, reset=reset, lengths=lengths)
    for row, first, last in [(0, 0, 3), (0, 3, 4), (0, 4, 7), (1, 0, 8), (1, 8, 9)]:
        document = x[row : row + 1, first:last]
        past = mixer.forwards(document)[0]
        future = mixer.backwards(document.flip(1))[0].flip(1)
        expected = past + future if combine == "sum" else torch.cat([past, future], -1) @ mixer.out.weight.T
        assert torch.allclose(y[row : row + 1, first:last], expected), (row, first)
    assert state == ()


def test_tied_directions_share_their_weights():
    tied, free = (build("bidirectional", dim=8, inner="gru", tied=tied) for tied in (True, False))
    assert 2 * sum(p.numel() for p in tied.parameters()) == sum(p.numel() for p in free.parameters())
    x = torch.randn(2, 5, 8)
    assert torch.allclose(tied(x.flip(1))[0].flip(1), tied(x)[0], atol=1e-6)


def test_it_stands_in_a_stack():
    stack = build("stack", dim=8, layers=["gru", {"mixer": "bidirectional", "inner": "gru"}])
    assert not stack.causal
    assert stack(torch.randn(2, 5, 8))[0].shape == (2, 5, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inner": "grue"}, "inner: no mixer is named 'grue'"),
        ({"inner": {"mixer": "lightnet", "causal": False}}, "inner is a LightNet; it must be a causal mixer"),
        ({"combine": "mean"}, "combine is 'mean'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(SeriatimError, match=message):
        build("bidirectional", dim=16, **options)
