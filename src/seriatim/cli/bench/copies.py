"""Gives our modules a peer's weights, so that both compute the same function."""

from typing import Any

import torch
from torch import nn

from seriatim.models.language_model import LanguageModel

__all__ = ["copy_mamba", "copy_mamba2", "copy_recurrent"]

# Ours to the peer's. transformers' embedding is shared with its head, as ours is.
_BLOCK = {
    "mixer_norm.weight": "norm.weight",
    "mixer.in_proj.weight": "mixer.in_proj.weight",
    "mixer.conv.bias": "mixer.conv1d.bias",
    "mixer.x_proj.weight": "mixer.x_proj.weight",
    "mixer.dt_proj.weight": "mixer.dt_proj.weight",
    "mixer.dt_proj.bias": "mixer.dt_proj.bias",
    "mixer.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
}

_BLOCK2 = {
    "mixer_norm.weight": "norm.weight",
    "mixer.conv.bias": "mixer.conv1d.bias",
    "mixer.decay.step_bias": "mixer.dt_bias",
    "mixer.decay.A_log": "mixer.A_log",
    "mixer.D": "mixer.D",
    "mixer.norm.weight": "mixer.norm.weight",
    "mixer.out_proj.weight": "mixer.out_proj.weight",
}


@torch.no_grad()
def copy_mamba(ours: LanguageModel, peer: nn.Module, names: dict[str, str]) -> None:
    """From a Mamba language model; `names` says how it calls its "blocks", its last "norm" and its "embedding".

    Every parameter of ours is written, or this fails.
    """
    _write(ours, _weights(ours, peer, names, _BLOCK))


@torch.no_grad()
def copy_mamba2(ours: LanguageModel, peer: nn.Module, names: dict[str, str]) -> None:
    """The same from a Mamba-2 language model."""
    found: dict[str, Any] = dict(peer.named_parameters())
    weights = _weights(ours, peer, names, _BLOCK2)
    for i in range(len(ours.layers)):
        own, both = f"stack.blocks.{i}.mixer", found[f"{names['blocks']}.{i}.mixer.in_proj.weight"]
        heads = weights[f"{own}.D"].numel()
        weights[f"{own}.in_proj.weight"], weights[f"{own}.decay.step.weight"] = both.split([len(both) - heads, heads])
    _write(ours, weights)


def _weights(ours: LanguageModel, peer: nn.Module, names: dict[str, str], block: dict[str, str]) -> dict[str, Any]:
    """By our names: the ends, and of every layer what `block` lists and the convolution's kernel."""
    found: dict[str, Any] = dict(peer.named_parameters())
    weights = {
        "embedding.weight": found[f"{names['embedding']}.weight"],
        "out_norm.weight": found[f"{names['norm']}.weight"],
    }
    for i in range(len(ours.layers)):
        own, theirs = f"stack.blocks.{i}", f"{names['blocks']}.{i}"
        weights |= {f"{own}.{name}": found[f"{theirs}.{peers}"] for name, peers in block.items()}
        weights[f"{own}.mixer.conv.weight"] = found[f"{theirs}.mixer.conv1d.weight"].squeeze(1)
    return weights


def _write(ours: nn.Module, weights: dict[str, Any]) -> None:
    own_parameters = dict(ours.named_parameters())
    assert own_parameters.keys() == weights.keys()
    for name, parameter in own_parameters.items():
        assert parameter.shape == weights[name].shape, name
        parameter.copy_(weights[name])


@torch.no_grad()
def copy_recurrent(ours: Any, peer: Any) -> None:
    """From torch.nn.LSTM or GRU (one layer) to our mixer with one head. Their two biases become one where that is all
    that counts; the GRU's candidate keeps both."""
    gates, dim = ours.gates, ours.dim
    bias_input, bias_hidden = peer.bias_ih_l0.view(gates, dim), peer.bias_hh_l0.view(gates, dim).clone()
    if ours.candidate_bias is not None:
        ours.candidate_bias.copy_(bias_hidden[-1])
        bias_hidden[-1] = 0
    ours.input.weight.copy_(peer.weight_ih_l0)
    ours.input.bias.copy_((bias_input + bias_hidden).flatten())
    ours.recurrent.copy_(peer.weight_hh_l0.view(gates, 1, dim, dim))
