"""A trained language model quantised: rotated, read for its activations, rearranged, rounded."""

import copy
from collections.abc import Iterable
from typing import Any

import torch

from seriatim.compress.layers import QuantizedEmbedding, QuantizedLinear
from seriatim.compress.mamba import QuantizedMamba
from seriatim.compress.mamba2 import QuantizedMamba2
from seriatim.compress.quantized import Quantized
from seriatim.compress.rearranging import Arrangement, rearrange, sort_and_cluster
from seriatim.compress.rotating import can_rotate, rotate, untie
from seriatim.compress.schemes import scheme_of
from seriatim.core.build import spec
from seriatim.core.errors import SeriatimError
from seriatim.models.language_model import LanguageModel

__all__ = ["bytes_of", "quantize"]


@torch.no_grad()
def quantize(model: LanguageModel, scheme: str, batches: Iterable[Any]) -> Quantized:
    """A quantised copy of a trained language model, in evaluation mode.

    Args:
        model: the trained model, which stays as it is.
        scheme: "w8a8", "w4a8" or "w4a16".
        batches: text like that which the model will read, from which the scales of the activations are made: tuples of
            tokens (B, T), anything, and resets (B, T) or None. It is gone through twice where activations are rounded.

    Returns:
        The model, which obeys the contract as the original does.

    Raises:
        SeriatimError: there is no such scheme, no layer is mamba or mamba2, or there is no text.
    """
    activations = scheme_of(scheme).activations
    found = Quantized(spec(model), scheme).eval()
    source = copy.deepcopy(model).eval()
    untie(source)
    if can_rotate(source):
        rotate(source)
    arrangements: dict[int, Arrangement] = {}
    if activations == 8:
        _open(found, source)
        _read(found, batches)
        arrangements = _rearranged(found, source)
    _open(found, source)
    _read(found, batches)
    _close(found, arrangements)
    return found


def bytes_of(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and of the buffers it keeps; memory that several share counts once."""
    kept = {(z.data_ptr(), z.shape): z for z in model.state_dict().values()}
    return sum(z.numel() * z.element_size() for z in kept.values())


def _open(found: Quantized, source: LanguageModel) -> None:
    """Gives the layers the trained weights, with which they compute while they observe."""
    ours, theirs = found.network, source
    embedding, head = _ends(found)
    embedding.fill(theirs.embedding.weight)
    head.open(theirs.head.weight)
    ours.out_norm.load_state_dict(theirs.out_norm.state_dict())
    ours.ngrams.load_state_dict(theirs.ngrams.state_dict())
    for own, other in zip(ours.stack._blocks(), theirs.stack._blocks(), strict=True):
        own.mixer_norm.load_state_dict(other.mixer_norm.state_dict())
        if isinstance(own.mixer, QuantizedMamba | QuantizedMamba2):
            own.mixer.open(other.mixer)
        else:
            own.mixer.load_state_dict(other.mixer.state_dict())
        if own.feed_forward is not None:
            own.feed_forward_norm.load_state_dict(other.feed_forward_norm.state_dict())
            _open_layers(own.feed_forward, other.feed_forward)


def _ends(found: Quantized) -> tuple[QuantizedEmbedding, QuantizedLinear]:
    """The embedding and the head."""
    embedding, head = found.network.get_submodule("embedding"), found.network.get_submodule("head")
    assert isinstance(embedding, QuantizedEmbedding)
    assert isinstance(head, QuantizedLinear)
    return embedding, head


def _open_layers(own: Any, other: Any) -> None:
    """A feed-forward layer's matrices, or where it is none that is quantised all it has."""
    layers = [(name, layer) for name, layer in own.named_children() if isinstance(layer, QuantizedLinear)]
    if not layers:
        own.load_state_dict(other.state_dict())
    for name, layer in layers:
        layer.open(getattr(other, name).weight, getattr(other, name).bias)


def _read(found: Quantized, batches: Iterable[Any]) -> None:
    """Reads the text."""
    state, count = None, 0
    device = next(found.parameters()).device
    for tokens, _, reset in batches:
        _, after = found(tokens.to(device), state, reset=None if reset is None else reset.to(device))
        state = after if found.constant_state else None
        count += tokens.numel()
    if not count:
        raise SeriatimError("batches is empty; the scales of activations are made from what a model reads")


def _rearranged(found: Quantized, source: LanguageModel) -> dict[int, Arrangement]:
    """Sorts and clusters the channels of every Mamba-2, by what was seen of them; returns how, by the layer."""
    arrangements = {}
    for index, (own, other) in enumerate(zip(found.network.stack._blocks(), source.stack._blocks(), strict=True)):
        if isinstance(own.mixer, QuantizedMamba2):
            seen: Any = own.mixer.conv_out.observer
            arrangements[index] = sort_and_cluster(seen.mean[: own.mixer.inner], other.mixer)
            rearrange(other.mixer, arrangements[index])
    return arrangements


def _close(found: Quantized, arrangements: dict[int, Arrangement]) -> None:
    """Rounds everything."""
    _ends(found)[1].close()
    for index, block in enumerate(found.network.stack._blocks()):
        if isinstance(block.mixer, QuantizedMamba2):
            one = torch.zeros(block.mixer.inner, dtype=torch.int64)
            block.mixer.close(arrangements[index].clusters if index in arrangements else one)
        elif isinstance(block.mixer, QuantizedMamba):
            block.mixer.close()
        for layer in block.feed_forward.children() if block.feed_forward is not None else ():
            if isinstance(layer, QuantizedLinear):
                layer.close()
