"""RWKV-7: what it is without removal, its official ranks, and decays and rates of any size."""

import pytest
import torch

from agreement import assert_close
from seriatim import build, ops
from seriatim.core.errors import SeriatimError


def spread(m):
    """The mixer with every weight away from where it begins."""
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return m


def test_at_a_rate_of_zero_nothing_is_removed():
    torch.manual_seed(0)
    m, x = spread(build("rwkv7", dim=16, heads=2)).double(), torch.randn(2, 40, 16, dtype=torch.float64)
    with torch.no_grad():
        m.rate.fill_(-1e4)
        m.replacement.zero_()
    y, state = m(x)
    change = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1) - x
    r, w, k, v = ((x + change * mu) for mu in m.mixes[:4])
    down, up = m.decay_network.down, m.decay_network.up
    log_decay = -(torch.tensor(-0.5).double().exp()) * torch.sigmoid(m.decay + up(torch.tanh(down(w))))
    q, k, v, g = (z.unflatten(-1, (2, 8)) for z in (m.receptance(r), m.key(k), m.value(v), log_decay))
    assert_close([state.memory], [ops.matrix_scan(q, k, v, g)[1]], 1e-12, "state")
    m.rate.data.fill_(1.0)
    assert not torch.allclose(m(x)[0], y)


def test_ranks_are_the_official_ones():
    """As published for the model of 0.19 billion weights."""
    m = build("rwkv7", dim=768, heads=12)
    ranks = [z.down.out_features for z in (m.decay_network, m.rate_network, m.gate_network)]
    assert ranks == [64, 64, 128]


def test_a_new_mixer_begins_as_its_source_does():
    """The decays of the first and the last of three layers at the ends of heads; all else in the middle."""
    first, last = (build("rwkv7", dim=64, heads=2, layer=layer, layers=3) for layer in (0, 2))
    for m, power in ((first, 1), (last, 2)):
        wanted = [-5.5 - 2.5, -5.5 + 6 * (31 / 63) ** power + 2.5, -5.5 + 6 * (32 / 63) ** power - 2.5, 0.5 + 2.5]
        assert torch.allclose(m.decay[[0, 31, 32, 63]], torch.tensor(wanted), atol=1e-5)
    assert torch.allclose(first.norm_weight, torch.tensor(3**-0.7))
    assert torch.allclose(last.norm_weight, torch.tensor(1.0))
    receptance, decay, key, value, rate, gate = 0.2, 0.9, 0.7, 0.7, 0.9, 0.2
    powers = torch.tensor([receptance, decay, key, value, rate, gate])
    assert torch.allclose(first.mixes[:, 32], 1 - 0.5**powers)
    assert torch.allclose(last.mixes[:, 32], 1 - 0.5 ** (powers / 3))
    assert torch.allclose(first.rate[32], torch.tensor(-0.19 - 0.3 + 0.4 * (32 / 63 - 0.5)))
    assert torch.allclose(first.removal[32], torch.tensor(0.71 - 0.1 * (32 / 63 - 0.5)))
    for network in (first.decay_network, first.rate_network, first.gate_network):
        assert not network.down.weight.any()
        longest = torch.linalg.matrix_norm(network.up.weight, 2)
        assert torch.allclose(longest, torch.tensor(0.1))


@pytest.mark.parametrize("size", [-80.0, 0.0, 80.0])
def test_decays_and_rates_of_any_size_are_finite_in_values_and_gradients(size):
    torch.manual_seed(0)
    m, x = spread(build("rwkv7", dim=16, heads=2)), torch.randn(2, 90, 16, requires_grad=True)
    with torch.no_grad():
        m.decay.fill_(size)
        m.rate.fill_(-size)
    y, state = m(x)
    again, state = m(x, state)
    (y.square().mean() + again.square().mean()).backward()
    for z in (y, again, *state, x.grad, *(p.grad for p in m.parameters())):
        assert z.isfinite().all()


def test_wrong_options_are_named():
    with pytest.raises(SeriatimError, match="layer is 4 and layers is 4"):
        build("rwkv7", dim=8, layer=4, layers=4)
    with pytest.raises(SeriatimError, match="gate_rank is 0"):
        build("rwkv7", dim=8, gate_rank=0)
