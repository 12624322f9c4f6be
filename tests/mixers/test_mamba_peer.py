"""Mamba and Mamba-2 beside the same layers of another library, with its weights."""

import os
import warnings
from importlib import import_module

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build

DIM, STATE, WIDTH = 24, 6, 8


@pytest.fixture
def made(monkeypatch):
    """Makes a layer of the peer's by its portable functions, without a download, with weights moved at random."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    package = pytest.importorskip("transformers", reason="the extra `bench` is not installed")
    package.utils.logging.set_verbosity_error()

    def make(model, config, layer, like=None, **options):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            home = import_module(f"transformers.models.{model}.modeling_{model}")
            given = getattr(package, config)(hidden_size=DIM, **options)
            found = getattr(home, layer)(given, 0, **({} if like is None else {"initialize_mixer_weights": False}))
        if like is not None:
            found.load_state_dict(like.state_dict())
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return found

    return make


def assert_same(ours, peer, time):
    """Equal outputs and gradients with respect to the input."""
    x, cotangent = torch.randn(2, time, DIM, requires_grad=True), torch.randn(2, time, DIM)
    found, wanted = ours(x)[0], peer(x)
    assert wanted.abs().mean() > 0.05
    assert_close([found], [wanted], 2e-5, "value")
    ours_x, peer_x = (torch.autograd.grad(y, x, cotangent)[0] for y in (found, wanted))
    assert_close([ours_x], [peer_x], 2e-4, "gradient")


def copied_mamba2(peer, **options):
    """Our Mamba-2 with the peer's weights. The peer has a bias of the steps twice where its products have biases."""
    inner, heads = peer.intermediate_size, peer.num_heads
    weight, steps = peer.in_proj.weight.split([peer.in_proj.out_features - heads, heads])
    weights = {
        "in_proj.weight": weight,
        "conv.weight": peer.conv1d.weight.squeeze(1),
        "decay.step.weight": steps,
        "decay.step_bias": peer.dt_bias,
        "decay.A_log": peer.A_log,
        "D": peer.D,
        "norm.weight": peer.norm.weight,
        "out_proj.weight": peer.out_proj.weight,
    }
    if peer.conv1d.bias is not None:
        weights["conv.bias"] = peer.conv1d.bias
    if peer.in_proj.bias is not None:
        bias, more = peer.in_proj.bias.split([peer.in_proj.out_features - heads, heads])
        weights |= {"in_proj.bias": bias, "decay.step_bias": peer.dt_bias + more, "out_proj.bias": peer.out_proj.bias}
    ours = build("mamba2", dim=DIM, state_size=STATE, head_dim=inner // heads, groups=peer.n_groups, **options)
    ours.load_state_dict(weights)
    return ours


@pytest.mark.parametrize("time", [1, 20, 150])
@pytest.mark.parametrize(
    ("theirs", "options"),
    [
        ({}, {}),
        ({"use_bias": True, "n_groups": 3}, {"bias": True}),
        ({"use_conv_bias": False}, {"conv_bias": False}),
        ({"time_step_limit": (0.02, 0.5)}, {"step_min": 0.02, "step_max": 0.5}),
    ],
)
def test_equals_mamba2(made, time, theirs, options):
    peer = made(
        "mamba2", "Mamba2Config", "Mamba2Mixer", num_heads=2 * DIM // WIDTH, head_dim=WIDTH, state_size=STATE,
        num_hidden_layers=1, chunk_size=16, **({"n_groups": 1} | theirs),
    )  # fmt: skip
    assert_same(copied_mamba2(peer, **options), peer, time)


@pytest.mark.parametrize("time", [1, 20, 150])
def test_equals_bamba(made, time):
    peer = made(
        "bamba", "BambaConfig", "BambaMixer", mamba_n_heads=6, mamba_d_head=WIDTH, mamba_n_groups=2,
        mamba_d_state=STATE, mamba_chunk_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    assert_same(copied_mamba2(peer), peer, time)


@pytest.mark.parametrize("time", [1, 20, 150])
def test_equals_zamba2(made, time):
    peer = made(
        "zamba2", "Zamba2Config", "Zamba2MambaMixer", n_mamba_heads=6, mamba_headdim=WIDTH, mamba_ngroups=2,
        mamba_d_state=STATE, chunk_size=16, num_hidden_layers=1, num_attention_heads=2, layer_types=["mamba"],
    )  # fmt: skip
    assert_same(copied_mamba2(peer, step_min=peer.time_step_limit[0]), peer, time)


def copied_mamba(peer, **options):
    """Our Mamba with the peer's weights, whatever it calls them and whatever norms it has."""
    ours = build("mamba", dim=DIM, state_size=STATE, dt_rank=5, **options)
    named = {
        "conv1d.weight": "conv.weight",
        "conv1d.bias": "conv.bias",
        "x_proj_weight": "x_proj.weight",
        "dt_proj_weight": "dt_proj.weight",
        "dt_proj_bias": "dt_proj.bias",
        "dt_layernorm.weight": "norms.0.weight",
        "b_layernorm.weight": "norms.1.weight",
        "c_layernorm.weight": "norms.2.weight",
    }
    weights = {named.get(name, name): weight for name, weight in peer.named_parameters()}
    if "x_proj_weight" in peer.state_dict():  # what goes in and its gate lie side by side
        weights["in_proj.weight"] = weights["in_proj.weight"].unflatten(0, (-1, 2)).transpose(0, 1)
    wanted = ours.state_dict()
    ours.load_state_dict({name: weight.reshape(wanted[name].shape) for name, weight in weights.items()})
    return ours


SIZES = {"state_size": STATE, "time_step_rank": 5, "num_hidden_layers": 1}
MAMBA_SIZES = {"mamba_d_state": STATE, "mamba_dt_rank": 5, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("time", [1, 20, 150])
def test_equals_mamba(made, time):
    peer = made("mamba", "MambaConfig", "MambaMixer", **SIZES)
    assert_same(copied_mamba(peer), peer, time)


@pytest.mark.parametrize("time", [1, 20, 150])
def test_equals_falcon_mamba(made, time):
    """The weights' names are Mamba's; the norms of the step, B and C have none."""
    like = made("mamba", "MambaConfig", "MambaMixer", **SIZES)
    peer = made("falcon_mamba", "FalconMambaConfig", "FalconMambaMixer", like=like, **SIZES)
    assert_same(copied_mamba(peer, select_norm="rms_unscaled"), peer, time)


@pytest.mark.parametrize("time", [1, 20, 150])
def test_equals_jamba(made, time):
    peer = made("jamba", "JambaConfig", "JambaMambaMixer", **MAMBA_SIZES)
    assert_same(copied_mamba(peer, select_norm="rms"), peer, time)


@pytest.mark.parametrize("time", [1, 20, 150])
@pytest.mark.parametrize("heads", [1, 3])
def test_equals_zamba(made, time, heads):
    peer = made("zamba", "ZambaConfig", "ZambaMambaMixer", n_mamba_heads=heads, layer_types=["mamba"], **MAMBA_SIZES)
    assert_same(copied_mamba(peer, heads=heads), peer, time)
