import pytest
import torch
from torch import nn

from seriatim.core import taps


class Layer(nn.Module):
    def forward(self, x):
        taps.tap(self, "seen", x)
        taps.tap(self, "hidden", x + 1)
        taps.add_loss(self, "balance", x.sum())
        return x


def model():
    return nn.Sequential(Layer(), nn.Sequential(Layer()))


def test_values_and_losses_are_collected_by_name():
    m, x = model(), torch.ones(2)
    with taps.collect(m) as found:
        m(x)
        m(x)
    assert set(found.values) == {"0.seen", "0.hidden", "1.0.seen", "1.0.hidden"}
    assert len(found.values["1.0.seen"]) == 2
    assert found.loss() == 8.0


def test_a_pattern_chooses_values_and_keeps_every_loss():
    m = model()
    with taps.collect(m, "1.*hidden") as found:
        m(torch.ones(2))
    assert set(found.values) == {"1.0.hidden"}
    assert found.loss() == 4.0


def test_nothing_is_kept_outside_or_from_other_models():
    m, other = model(), model()
    with taps.collect(m) as found:
        other(torch.ones(2))
    m(torch.ones(2))
    assert found.values == {}
    assert found.loss() == 0.0


def test_blocks_nest_and_survive_an_error():
    m = model()
    with taps.collect(m) as outer, taps.collect(m[1]) as inner:
        m(torch.ones(2))
    assert set(inner.values) == {"0.seen", "0.hidden"}
    assert "1.0.seen" in outer.values
    with pytest.raises(RuntimeError), taps.collect(m):
        raise RuntimeError
    assert taps._collecting == []
