"""A language model with quantised weights."""

from typing import Any

from torch import Tensor, nn

from seriatim.compress.layers import QuantizedEmbedding, QuantizedLinear
from seriatim.compress.mamba import QuantizedMamba
from seriatim.compress.mamba2 import QuantizedMamba2
from seriatim.compress.rotating import untie
from seriatim.compress.schemes import Scheme, scheme_of
from seriatim.core.build import Spec, build
from seriatim.core.errors import SeriatimError
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.mixers.state_space.mamba import Mamba
from seriatim.mixers.state_space.mamba2 import Mamba2
from seriatim.models.language_model import LanguageModel
from seriatim.nn.feed_forward import GatedFeedForward, PlainFeedForward

__all__ = ["Quantized"]


class Quantized(Mixer):
    """A language model whose embedding, head, Mamba and Mamba-2 layers and feed-forward layers are quantised.

    Other mixers, mixtures of experts and norms stay as they are. Made like this its numbers mean nothing: they are
    loaded, or made from a trained model by :func:`seriatim.compress.quantize.quantize`. It is not for training.

    Args:
        original: the spec of the language model.
        scheme: "w8a8", "w4a8" or "w4a16": the bits of the weights, and of what they are multiplied by.

    Source: Chiang et al., 2025, arXiv:2503.22879.
    """

    reads_tokens = True

    def __init__(self, original: Spec, scheme: str):
        super().__init__()
        bits = scheme_of(scheme)
        model = build(original)
        if not isinstance(model, LanguageModel):
            raise SeriatimError(f"original is a {type(model).__name__}; only a language_model can be quantised")
        self.original, self.scheme = original, scheme
        self.network: LanguageModel = model
        self.vocab_size, self.dim = model.vocab_size, model.dim
        self.causal, self.constant_state = model.causal, model.constant_state
        _replace(model, bits)
        self.requires_grad_(False)

    def init_state(self, batch: int) -> State:
        return self.network.init_state(batch)

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        return self.network(x, state, reset=reset, lengths=lengths)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.network.step(x, state)


def _replace(model: LanguageModel, bits: Scheme) -> None:
    """Puts quantised layers in the place of the model's own."""
    blocks = model.stack._blocks()
    if not any(isinstance(block.mixer, Mamba | Mamba2) for block in blocks):
        raise SeriatimError(f"layers is {model.layers}; at least one must be mamba or mamba2 to be quantised")
    untie(model)
    model.add_module("embedding", QuantizedEmbedding(model.vocab_size, model.dim, bits))
    model.add_module("head", QuantizedLinear(model.dim, model.vocab_size, bits))
    for index, block in enumerate(blocks):
        try:
            block.mixer = _quantized_mixer(block.mixer, bits)
        except SeriatimError as error:
            raise SeriatimError(f"layers[{index}]: {error}") from error
        if isinstance(block.feed_forward, GatedFeedForward):
            block.feed_forward.inner = _quantized_linear(block.feed_forward.inner, bits)
            block.feed_forward.out = _quantized_linear(block.feed_forward.out, bits, rotated=True)
        elif isinstance(block.feed_forward, PlainFeedForward):
            block.feed_forward.up = _quantized_linear(block.feed_forward.up, bits)
            block.feed_forward.out = _quantized_linear(block.feed_forward.out, bits, rotated=True)


def _quantized_mixer(mixer: Mixer, bits: Scheme) -> Mixer:
    if isinstance(mixer, Mamba2):
        return QuantizedMamba2(mixer, bits)
    return QuantizedMamba(mixer, bits) if isinstance(mixer, Mamba) else mixer


def _quantized_linear(layer: nn.Linear, bits: Scheme, rotated: bool = False) -> Any:
    return QuantizedLinear(layer.in_features, layer.out_features, bits, layer.bias is not None, rotated)
