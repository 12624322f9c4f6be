"""Reductions of one linear attention to another, and sizes that only grow with the errors of an implementation."""

import pytest
import torch

from seriatim import build, ops
from seriatim.core.errors import SeriatimError
from seriatim.mixers.linear_attention.base import read_memory


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gla_with_open_gates_is_linear_attention_of_the_identity():
    torch.manual_seed(0)
    gla = build("gla", dim=16, heads=2).double()
    linear = build("linear", dim=16, heads=2, query_dim=4, feature_map="identity", normalize=False).double()
    with torch.no_grad():
        gla.gate_up.bias.fill_(1e9)
        linear.qkv.weight.copy_(gla.qkv.weight)
        linear.qkv.bias.zero_()
    x = features(2, 30, 16)
    (ours, _), (theirs, _) = (
        read_memory(m.project(x), torch.zeros(2, 2, 4, 8).double(), None, None) for m in (linear, gla)
    )
    assert torch.allclose(ours, theirs * 4**0.5, atol=1e-12)


def test_linear_attention_of_the_normalised_exponential_is_near_softmax():
    torch.manual_seed(0)
    m = build("linear", dim=8, heads=1, feature_map="performer", random_features=4096).double()
    x = features(1, 12, 8)
    q, k, v = m.qkv(x).split([8, 8, 8], -1)
    softmax, _ = ops.attention(q[:, :, None], k[:, :, None], v[:, :, None])
    uniform = v.cumsum(1) / torch.arange(1, 13)[:, None]
    wanted, far = m.out(softmax.flatten(-2)), m.out(uniform)
    assert (m(x)[0] - wanted).norm() < 0.1 * (far - wanted).norm()


def test_a_normalised_mean_stays_within_the_values():
    torch.manual_seed(0)
    for name in ("elu", "taylor", "performer"):
        m = build("linear", dim=8, heads=2, feature_map=name)
        x = features(1, 4000, 8).float()
        with torch.no_grad():
            inputs = m.project(x)
            o, _ = read_memory(inputs, m.init_state(1), None, None)
        mean, v = o[..., :-1] / o[..., -1:], inputs.v[..., :-1]
        assert (mean <= v.cummax(1).values + 1e-4).all()
        assert (mean >= v.cummin(1).values - 1e-4).all()


def test_the_identity_cannot_be_normalised():
    with pytest.raises(SeriatimError, match="normalize is True and feature_map is 'identity'"):
        build("linear", dim=8, feature_map="identity")
