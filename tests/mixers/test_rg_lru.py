"""RG-LRU beside transformers' RecurrentGemma, with its weights."""

import os
import warnings

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build

DIM, HEADS, WIDTH = 24, 3, 36


@pytest.fixture
def peer(monkeypatch):
    """RecurrentGemma's recurrent block, without a download."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers", reason="the extra `bench` is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import RecurrentGemmaConfig
        from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

        config = RecurrentGemmaConfig(hidden_size=DIM, lru_width=WIDTH, num_attention_heads=HEADS, conv1d_width=4)
        block = RecurrentGemmaRecurrentBlock(config, 0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.4, generator=generator)
        block.rg_lru.recurrent_param.sub_(3)
    return block


def ours_from(peer):
    ours, lru = build("rg_lru", dim=DIM, heads=HEADS, width=WIDTH), peer.rg_lru
    ours.load_state_dict(
        {
            "branches.weight": torch.cat([peer.linear_x.weight, peer.linear_y.weight]),
            "branches.bias": torch.cat([peer.linear_x.bias, peer.linear_y.bias]),
            "conv.weight": peer.conv_1d.weight.squeeze(1),
            "conv.bias": peer.conv_1d.bias,
            "gates": torch.cat([lru.input_gate_weight, lru.recurrent_gate_weight], 2),
            "gates_bias": torch.cat([lru.input_gate_bias, lru.recurrent_gate_bias], 1),
            "decay": lru.recurrent_param,
            "out.weight": peer.linear_out.weight,
            "out.bias": peer.linear_out.bias,
        }
    )
    return ours


@pytest.mark.parametrize("time", [2, 20, 150])
def test_equals_recurrent_gemma(peer, time):
    ours = ours_from(peer)
    x, cotangent = torch.randn(2, time, DIM, requires_grad=True), torch.randn(2, time, DIM)
    found = ours(x)[0]
    wanted = peer(x, torch.arange(time)[None], None, use_cache=False)[0]
    assert wanted.abs().mean() > 0.1
    assert_close([found], [wanted], 2e-5, "value")
    ours_x, peer_x = (torch.autograd.grad(y, x, cotangent)[0] for y in (found, wanted))
    assert_close([ours_x], [peer_x], 2e-4, "gradient")


def test_a_reset_is_position_zero_of_the_recurrence(peer):
    """The peer's recurrence knows documents by their positions (its convolution does not: one tap here)."""
    torch.manual_seed(1)
    x = torch.randn(2, 30, WIDTH)
    reset = torch.zeros(2, 30, dtype=torch.bool)
    reset[:, [7, 8, 19]] = True
    positions = torch.arange(30) - torch.where(reset[0], torch.arange(30), 0).cummax(0).values
    ours = build("rg_lru", dim=WIDTH, heads=HEADS, conv_size=1)
    weights = ours_from(peer).state_dict()
    with torch.no_grad():
        for name in ("gates", "gates_bias", "decay"):
            ours.get_parameter(name).copy_(weights[name])
        for name, layer in (("branches", ours.branches), ("out", ours.out)):
            layer.weight.copy_(torch.cat([torch.eye(WIDTH)] * (2 if name == "branches" else 1)))
        ours.branches.weight[WIDTH:] = 0
        ours.branches.bias[WIDTH:] = 10.0  # gelu(10) is 10
        ours.conv.weight.fill_(1.0)
    peer.rg_lru.recurrent_states = None
    wanted = peer.rg_lru(x, positions[None].expand(2, -1))
    assert_close([ours(x, reset=reset)[0] / 10], [wanted], 1e-5, "value")


def test_begins_between_the_radii():
    torch.manual_seed(0)
    mixer = build("rg_lru", dim=4, heads=1, width=2000)
    full = torch.exp(-8 * torch.nn.functional.softplus(mixer.decay.detach().double()))
    assert 0.9 <= full.min() < 0.901
    assert 0.998 < full.max() <= 0.999 + 1e-6
    assert abs(full.mean() - 0.9495) < 0.003


@pytest.mark.parametrize("size", [-1e4, -100.0, 1e4])
def test_gradients_are_finite_where_gates_are_shut(size):
    mixer = build("rg_lru", dim=8, heads=2)
    with torch.no_grad():
        mixer.gates_bias[:, 4:] = size
    x = torch.randn(2, 20, 8, requires_grad=True)
    mixer(x)[0].square().mean().backward()
    for name, z in [("x", x), *mixer.named_parameters()]:
        assert z.grad.isfinite().all(), name


def test_wrong_heads_are_named():
    with pytest.raises(ValueError, match="width is 10 and heads is 4; width must be a multiple of heads"):
        build("rg_lru", dim=8, heads=4, width=10)
