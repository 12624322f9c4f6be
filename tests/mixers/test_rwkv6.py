"""RWKV-6: reading before writing, and decays of any size."""

import pytest
import torch

from seriatim import build, ops
from seriatim.core.errors import SeriatimError
from seriatim.mixers.linear_attention.rwkv6 import read_before


def test_reading_before_writing_is_the_scan_one_token_earlier():
    generator = torch.Generator().manual_seed(0)
    r, k, v, g = (torch.randn(2, 40, 2, 4, generator=generator, dtype=torch.float64) for _ in range(4))
    state, g = torch.randn(2, 2, 4, 4, generator=generator, dtype=torch.float64), -g.abs()
    o, after = read_before(r, k, v, g, state, None)
    wanted, last = ops.matrix_scan(r.roll(-1, 1), k, v, g, state=state)
    assert torch.allclose(o[:, 1:], wanted[:, :-1])
    assert torch.allclose(o[:, 0], torch.einsum("bhk,bhkv->bhv", r[:, 0], state))
    assert torch.allclose(after, last)


@pytest.mark.parametrize("decay", [-50.0, 0.0, 20.0, 80.0])
def test_decays_of_any_size_are_finite_in_values_and_gradients(decay):
    torch.manual_seed(0)
    m, x = build("rwkv6", dim=16, heads=2), torch.randn(2, 90, 16, requires_grad=True)
    with torch.no_grad():
        m.decay.fill_(decay)
        for weight in (m.out.weight, m.decay_down.weight, m.mix_down.weight):
            weight.normal_()
    y, state = m(x)
    again, state = m(x, state)
    (y.square().mean() + again.square().mean()).backward()
    for z in (y, again, *state, x.grad, *(p.grad for p in m.parameters())):
        assert z.isfinite().all()


def test_wrong_options_are_named():
    with pytest.raises(SeriatimError, match="layer is -1 and layers is 4"):
        build("rwkv6", dim=8, layer=-1, layers=4)
