r"""A language model whose features are rotated: it computes what it did, with smaller outliers.

The weights of the norms are multiplied into the matrices behind them, and then every matrix that reads the residual
stream, W, becomes W H, and every one that writes to it :math:`H^\top W`, with a Hadamard matrix H. Norms of root mean
squares do not see a rotation.

Source: Ashkboos et al., 2024, arXiv:2404.00456, section 3; for state spaces Chiang et al., 2025, arXiv:2503.22879.
"""

from typing import Any

import torch
from torch import Tensor, nn

from seriatim.compress.hadamard import hadamard
from seriatim.mixers.state_space.mamba import Mamba
from seriatim.mixers.state_space.mamba2 import Mamba2
from seriatim.models.language_model import LanguageModel
from seriatim.nn.feed_forward import GatedFeedForward, PlainFeedForward
from seriatim.nn.norms import RMSNorm

__all__ = ["can_rotate", "rotate", "untie"]


def untie(model: LanguageModel) -> None:
    """Gives the head a matrix of its own."""
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())


def can_rotate(model: LanguageModel) -> bool:
    """Whether it is known of all parts of the model which matrices read and write the features."""
    kinds = (Mamba, Mamba2)
    return (
        not model.ngram_heads
        and isinstance(model.out_norm, RMSNorm)
        and all(type(block.mixer) in kinds for block in model.stack._blocks())
        and all(
            block.feed_forward is None or isinstance(block.feed_forward, GatedFeedForward | PlainFeedForward)
            for block in model.stack._blocks()
        )
    )


@torch.no_grad()
def rotate(model: LanguageModel) -> None:
    """Rotates the weights of a model whose head is not tied."""
    turn = hadamard(model.dim)
    _set(model.embedding.weight, model.embedding.weight.double() @ turn)
    for block in model.stack._blocks():
        readers = [block.mixer.in_proj, *([block.mixer.decay.step] if isinstance(block.mixer, Mamba2) else [])]
        _read(block.mixer_norm, readers, turn)
        _write(block.mixer.out_proj, turn)
        if block.feed_forward is not None:
            gated = isinstance(block.feed_forward, GatedFeedForward)
            _read(block.feed_forward_norm, [block.feed_forward.inner if gated else block.feed_forward.up], turn)
            _write(block.feed_forward.out, turn)
    _read(model.out_norm, [model.head], turn)


def _read(norm: Any, layers: list[nn.Linear], turn: Tensor) -> None:
    for layer in layers:
        _set(layer.weight, (layer.weight.double() * norm.weight.double()) @ turn)
    norm.weight.fill_(1)


def _write(layer: nn.Linear, turn: Tensor) -> None:
    _set(layer.weight, turn.mT @ layer.weight.double())
    if layer.bias is not None:
        _set(layer.bias, layer.bias.double() @ turn)


def _set(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value)
