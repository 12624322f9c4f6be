"""Gated DeltaNet beside the same layer of another library, with its weights."""

import os
import warnings

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build

DIM, HEADS, KEYS, EXPAND = 24, 3, 6, 2
VALUES = KEYS * EXPAND


@pytest.fixture
def peer(monkeypatch):
    """Qwen3-Next's layer on its portable functions, without a download."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    pytest.importorskip("transformers", reason="the extra `bench` is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Qwen3NextConfig
        from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

        config = Qwen3NextConfig(
            hidden_size=DIM, num_hidden_layers=1, layer_types=["linear_attention"], rms_norm_eps=1e-5,
            linear_num_key_heads=HEADS, linear_num_value_heads=HEADS, linear_key_head_dim=KEYS,
            linear_value_head_dim=VALUES, linear_conv_kernel_dim=4,
        )  # fmt: skip
        return Qwen3NextGatedDeltaNet(config, 0)


def ours_from(peer):
    """Our layer with the peer's weights; the peer keeps those of a head side by side."""
    ours = build("gated_deltanet", dim=DIM, heads=HEADS, head_dim=KEYS, expand_v=EXPAND)
    q, k, v, gate = peer.in_proj_qkvz.weight.view(HEADS, -1, DIM).split([KEYS, KEYS, VALUES, VALUES], 1)
    beta, step = peer.in_proj_ba.weight.view(HEADS, 2, DIM).unbind(1)
    ours.load_state_dict(
        {
            "qkv.weight": torch.cat([z.flatten(0, 1) for z in (q, k, v)]),
            "out_gate.weight": gate.flatten(0, 1),
            "beta.weight": beta,
            "decay.step.weight": step,
            "decay.step_bias": peer.dt_bias,
            "decay.A_log": peer.A_log,
            "conv.weight": peer.conv1d.weight.squeeze(1),
            "norm.weight": peer.norm.weight,
            "out.weight": peer.out_proj.weight,
        }
    )
    return ours


@pytest.mark.parametrize("time", [1, 20, 150])
def test_equals_qwen3_next(peer, time):
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = ours_from(peer)
    x, cotangent = torch.randn(2, time, DIM, requires_grad=True), torch.randn(2, time, DIM)
    found, wanted = ours(x)[0], peer(x)
    assert wanted.abs().mean() > 0.1
    assert_close([found], [wanted], 2e-5, "value")
    ours_x, peer_x = (torch.autograd.grad(y, x, cotangent)[0] for y in (found, wanted))
    assert_close([ours_x], [peer_x], 2e-4, "gradient")
