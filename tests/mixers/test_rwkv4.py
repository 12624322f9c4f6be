"""RWKV-4: keys of any size, and transformers' RWKV where it is installed."""

import pytest
import torch

from seriatim import build
from seriatim.core.errors import SeriatimError
from seriatim.mixers.linear_attention.rwkv4 import RWKV4


def mixed(dtype: torch.dtype) -> RWKV4:
    """One whose matrices are not zero, as they are to begin with."""
    torch.manual_seed(0)
    m = build("rwkv4", dim=16, layer=1, layers=2).to(dtype)
    for layer in (m.key, m.receptance, m.out):
        torch.nn.init.normal_(layer.weight, std=0.3)
    return m


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("rate", [-20.0, 0.0, 8.0])
def test_keys_of_any_size_are_finite_in_values_and_gradients(size, rate):
    m = mixed(torch.float32)
    with torch.no_grad():
        m.key.weight.mul_(size)
        m.decay_log.fill_(rate)
    x = torch.randn(2, 90, 16, requires_grad=True)
    y, state = m(x)
    again, state = m(x, state)
    (y.square().mean() + again.square().mean()).backward()
    for z in (y, again, *state, x.grad, *(p.grad for p in m.parameters())):
        assert z.isfinite().all()


def test_the_average_stays_within_the_values():
    m, x = mixed(torch.float64), torch.randn(1, 3000, 16).double()
    with torch.no_grad():
        k, v = 5 * x, m.value(x)
        wkv, _ = m._average(k, v, m.init_state(1), None, None)
    assert (wkv <= v.cummax(1).values + 1e-9).all()
    assert (wkv >= v.cummin(1).values - 1e-9).all()


@pytest.mark.filterwarnings("ignore")
def test_equals_transformers():
    pytest.importorskip("transformers", reason="the peer: pip install 'seriatim[bench]'")
    from transformers.models.rwkv.configuration_rwkv import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    m = mixed(torch.float32)
    peer = RwkvSelfAttention(RwkvConfig(hidden_size=16, attention_hidden_size=16, num_hidden_layers=2), layer_id=1)
    with torch.no_grad():
        for ours, theirs in (
            (m.decay_log, peer.time_decay), (m.bonus, peer.time_first), (m.mix_key, peer.time_mix_key),
            (m.mix_value, peer.time_mix_value), (m.mix_receptance, peer.time_mix_receptance),
            (m.key.weight, peer.key.weight), (m.value.weight, peer.value.weight),
            (m.receptance.weight, peer.receptance.weight), (m.out.weight, peer.output.weight),
        ):  # fmt: skip
            theirs.copy_(ours.view_as(theirs))
        x = torch.randn(2, 50, 16)
        assert torch.allclose(m(x)[0], peer(x)[0], atol=2e-6)


def test_wrong_options_are_named():
    with pytest.raises(SeriatimError, match="layer is 2 and layers is 2"):
        build("rwkv4", dim=8, layer=2, layers=2)
