"""What the mixture of memories promises beyond the contract."""

import pytest
import torch

from seriatim import build
from seriatim.core import taps
from seriatim.core.errors import SeriatimError


def test_one_memory_without_a_router_is_that_memory():
    torch.manual_seed(0)
    gla = build("gla", dim=16, heads=2).double()
    mixture = build("mixture_of_memories", dim=16, heads=2, memories=1, active=1, shared=False, rule="gla").double()
    with torch.no_grad():
        weights = zip((mixture.query, mixture.key, mixture.value), gla.qkv.weight.split([8, 8, 16]), strict=True)
        for layer, weight in weights:
            layer.weight.copy_(weight)
        mixture.gate_down.weight.copy_(gla.gate_down.weight)
        mixture.gate_up[0].copy_(gla.gate_up.weight)
        mixture.gate_bias[0].copy_(gla.gate_up.bias)
        for name in ("out_gate", "norm", "out"):
            getattr(mixture, name).load_state_dict(getattr(gla, name).state_dict())
        x = torch.randn(2, 70, 16, dtype=torch.float64)
        (y, state), (expected, memory) = mixture(x), gla(x)
    assert torch.allclose(y, expected, atol=1e-12)
    assert torch.allclose(state, memory, atol=1e-12)


@pytest.mark.parametrize("rule", ["linear", "gla", "delta", "gated_delta"])
def test_a_token_leaves_the_memories_it_does_not_go_to_as_they_are(rule):
    torch.manual_seed(0)
    mixer = build("mixture_of_memories", dim=16, heads=2, memories=4, active=1, rule=rule).double()
    with torch.no_grad(), taps.collect(mixer) as found:
        before = mixer(torch.randn(3, 20, 16, dtype=torch.float64))[1]
        after = mixer.step(torch.randn(3, 16, dtype=torch.float64), before)[1]
    changed = (after != before).flatten(2).any(-1).unflatten(1, (5, 2))
    chosen = found.values["weights"][-1][:, 0] > 0
    assert (chosen.sum(-1) == 1).all()
    assert torch.equal(changed, torch.cat([chosen, torch.ones(3, 1, dtype=torch.bool)], 1)[..., None].expand(3, 5, 2))


def test_the_loss_is_least_where_all_memories_are_used_alike():
    mixer = build("mixture_of_memories", dim=16, heads=2, memories=4, active=1, balance=0.5)
    x = torch.randn(2, 64, 16)
    with torch.no_grad():
        mixer.router.weight.zero_()
        with taps.collect(mixer) as found:
            mixer(x)
        assert found.loss() == pytest.approx(0.5)  # equal scores
        mixer.router.weight[0] = 50 * x.flatten(0, 1).mean(0)
        mixer.router.weight[1:] = -mixer.router.weight[0]
        x = x.flatten(0, 1).mean(0).expand(2, 64, 16)
        with taps.collect(mixer) as found:
            mixer(x)
        assert found.loss() == pytest.approx(2.0, rel=0.05)  # one takes all


def test_padding_does_not_count_in_the_loss():
    mixer = build("mixture_of_memories", dim=16, heads=2, memories=4)
    x, losses = torch.randn(1, 30, 16), []
    for tokens, lengths in ((x[:, :20], None), (x, torch.tensor([20]))):
        with taps.collect(mixer) as found:
            mixer(tokens, lengths=lengths)
        losses.append(found.loss().item())
    assert losses[0] == pytest.approx(losses[1])


def test_more_active_memories_than_there_are_is_refused():
    with pytest.raises(SeriatimError, match="active is 3; it must be at most memories = 2"):
        build("mixture_of_memories", dim=16, heads=2, memories=2, active=3)
