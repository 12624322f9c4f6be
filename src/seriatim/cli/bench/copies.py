"""Gives our modules a peer's weights, so that both compute the same function."""

from typing import Any

import torch
from torch import nn

from seriatim.models.language_model import LanguageModel

__all__ = ["copy_mamba", "copy_recurrent"]

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


@torch.no_grad()
def copy_mamba(ours: LanguageModel, peer: nn.Module, names: dict[str, str]) -> None:
    """From a Mamba language model; `names` says how it calls its "blocks", its last "norm" and its "embedding".

    Every parameter of ours is written, or this fails.
    """
    found: dict[str, Any] = dict(peer.named_parameters())
    weights = {
        "embedding.weight": found[f"{names['embedding']}.weight"],
        "out_norm.weight": found[f"{names['norm']}.weight"],
    }
    for i in range(len(ours.layers)):
        block = f"{names['blocks']}.{i}"
        weights |= {f"stack.blocks.{i}.{own}": found[f"{block}.{name}"] for own, name in _BLOCK.items()}
        weights[f"stack.blocks.{i}.mixer.conv.weight"] = found[f"{block}.mixer.conv1d.weight"].squeeze(1)
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
