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
    assert (m(x)[0] - wanted).norm() < 0.2 * (far - wanted).norm()


def test_a_normalised_mean_stays_within_the_values():
    torch.manual_seed(0)
    for name in ("elu", "taylor", "performer"):
        m = build("linear", dim=8, heads=2, feature_map=name)
        x = features(1, 4000, 8).float()
        with torch.no_grad():
            inputs = m.project(x)
            mean, _ = read_memory(inputs, m.init_state(1), None, None, normalize=True)
        v = inputs.v
        assert (mean <= v.cummax(1).values + 1e-4).all()
        assert (mean >= v.cummin(1).values - 1e-4).all()


def test_retnet_is_a_matrix_scan_with_one_rate_a_head():
    torch.manual_seed(0)
    m, x = build("retnet", dim=16, heads=2).double(), features(2, 30, 16)
    q, k, v = m.qkv(x).split([16, 16, 32], -1)
    q, k, v = (z.unflatten(-1, (2, -1)) for z in (q, k, v))
    turn = torch.polar(
        torch.ones(30, 4).double(), torch.arange(30)[:, None] * 10000.0 ** (-torch.arange(4).double() / 3)
    )
    q, k = (torch.view_as_complex(torch.stack(z.chunk(2, -1), -1)) * turn[:, None] for z in (q, k))
    q, k = (torch.cat([z.real, z.imag], -1) for z in (q, k))
    rates = torch.tensor([31 / 32, 63 / 64]).double().log().expand(2, 30, 2)
    wanted, _ = ops.matrix_scan(q, k, v, rates, scale=8**-0.5)
    found, _ = read_memory(m.project(x, torch.arange(30).expand(2, -1)), None, None, None)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_retention_depends_on_distance_alone():
    torch.manual_seed(0)
    m, x = build("retnet", dim=16, heads=2).double(), features(2, 30, 16)
    state = m.init_state(2)
    late = m(x, state._replace(position=state.position + 500))[0]
    assert torch.allclose(late, m(x)[0], atol=1e-9)


def test_positions_restart_with_a_document_and_stop_with_the_padding():
    m, reset = build("retnet", dim=16, heads=2).double(), torch.zeros(3, 30, dtype=torch.bool)
    reset[0, [4, 20]] = reset[2, 29] = True
    _, state = m(features(3, 30, 16), reset=reset, lengths=torch.tensor([25, 30, 12]))
    assert state.position.tolist() == [5, 30, 12]
    _, state = m(features(3, 0, 16), state, reset=reset[:, :0])
    assert state.position.tolist() == [5, 30, 12]


def test_based_is_linear_attention_with_the_taylor_map():
    torch.manual_seed(0)
    based = build("based", dim=16, heads=2, query_dim=5).double()
    linear = build("linear", dim=16, heads=2, query_dim=5, feature_map="taylor").double()
    linear.load_state_dict(based.state_dict(), strict=False)
    with torch.no_grad():
        linear.qkv.bias.zero_()
        linear.out.bias.zero_()
    x = features(2, 30, 16)
    assert torch.allclose(based(x)[0], linear(x)[0], atol=1e-12)


@pytest.mark.parametrize("bound", [0.0, 0.3, 0.9])
def test_hgrn2_keeps_no_less_than_its_bound(bound):
    m, x = build("hgrn2", dim=16, heads=2, lower_bound=bound).double(), 100 * features(1, 50, 16)
    _, k, _, log_decay = m.project(x)
    assert torch.allclose(log_decay.exp() + k, torch.ones(()).double(), atol=1e-12)
    assert log_decay.exp().min() >= bound - 1e-12
    assert log_decay.exp().min() < bound + 1e-6
    with pytest.raises(SeriatimError, match="lower_bound is 1"):
        build("hgrn2", dim=16, lower_bound=1)


def test_the_identity_cannot_be_normalised():
    with pytest.raises(SeriatimError, match="normalize is True and feature_map is 'identity'"):
        build("linear", dim=8, feature_map="identity")
