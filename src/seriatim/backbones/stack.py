"""A stack of residual blocks: the one shell around any mixers."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seriatim.core.build import Spec, build
from seriatim.core.errors import SeriatimError, check_number, check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.nn import moe
from seriatim.nn.feed_forward import FeedForward, GatedFeedForward, build_feed_forward, for_layers
from seriatim.nn.norms import build_norm

__all__ = ["Stack"]


class Block(nn.Module):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)) where there is one."""

    def __init__(self, dim: int, mixer: Mixer, norm: str, feed_forward: FeedForward, expansion: float, dropout: float):
        super().__init__()
        self.mixer_norm, self.mixer = build_norm(norm, dim), mixer
        self.feed_forward = build_feed_forward(feed_forward, dim, expansion)
        self.feed_forward_norm = None if self.feed_forward is None else build_norm(norm, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """x (B, T, dim) and the mixer's state to the same."""
        y, state = self.mixer(self.mixer_norm(x), state, reset=reset, lengths=lengths)
        return self._rest(x, y), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (B, dim), one token."""
        y, state = self.mixer.step(self.mixer_norm(x), state)
        return self._rest(x, y), state

    def _rest(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + self.dropout(y)
        if self.feed_forward is None or self.feed_forward_norm is None:
            return x
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class Stack(Mixer):
    r"""Residual blocks one upon another, each a mixer and a feed-forward layer behind norms.

    .. math:: x \leftarrow x + \mathrm{mixer}_i(\mathrm{norm}(x)), \quad x \leftarrow x +
    \mathrm{ff}_i(\mathrm{norm}(x))

    The state is the tuple of the mixers' states.

    Args:
        dim: features in and out.
        layers: a spec for each mixer, such as `["gla", {"mixer": "window", "size": 128}]`; each gets `dim`.
        norm: "rms" or "layer".
        feed_forward: "swiglu", "gelu", "moe" or "none", for all layers or a list with one for each; "moe" also as
            `{"feed_forward": "moe", "experts": 4}` with the options of :class:`seriatim.nn.moe.MixtureOfExperts`.
        expansion: hidden units of a feed-forward layer as a multiple of dim (a gated one has two thirds of it).
        dropout: probability, on what each branch adds.

    Source: pre-norm residual blocks, Xiong et al., 2020, arXiv:2002.04745.
    """

    def __init__(
        self,
        dim: int,
        layers: Sequence[Spec],
        norm: str = "rms",
        feed_forward: FeedForward | Sequence[FeedForward] = "swiglu",
        expansion: float = 4.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_size(dim=dim)
        if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
            raise SeriatimError(f"layers is {layers!r}; it must be a list of at least one spec, such as ['gla', 'gla']")
        check_number(dropout=dropout)
        if not 0 <= dropout < 1:
            raise SeriatimError(f"dropout is {dropout}; it must be at least 0 and below 1")
        self.dim, self.layers, self.norm, self.feed_forward = dim, list(layers), norm, feed_forward
        self.expansion, self.dropout = expansion, dropout
        mixers = [self._build(index, layer) for index, layer in enumerate(layers)]
        self.blocks = nn.ModuleList(
            Block(dim, mixer, norm, each, expansion, dropout)
            for mixer, each in zip(mixers, for_layers(feed_forward, len(mixers)), strict=True)
        )
        self.causal = all(mixer.causal for mixer in mixers)
        self.constant_state = all(mixer.constant_state for mixer in mixers)

    def _build(self, index: int, layer: Spec) -> Mixer:
        try:
            mixer = build(layer, dim=self.dim)
        except SeriatimError as error:
            raise SeriatimError(f"layers[{index}]: {error}") from error
        if not isinstance(mixer, Mixer) or mixer.reads_tokens:
            raise SeriatimError(f"layers[{index}] is a {type(mixer).__name__}; it must be a mixer of features")
        if mixer.dim != self.dim:
            raise SeriatimError(f"layers[{index}] has dim {mixer.dim}; the stack's dim is {self.dim}")
        return mixer

    def init_state(self, batch: int) -> State:
        return tuple(block.mixer.init_state(batch) for block in self._blocks()) if self.causal else ()

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        return self.run(slice(None), x, state, reset, lengths)

    def run(
        self, part: slice, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """Only the blocks of `part`, as `forward` runs them all: takes the whole state, returns that of the part."""
        new = []
        old = state[part] if self.causal else [None] * len(self.blocks[part])
        for block, each in zip(self._blocks()[part], old, strict=True):
            x, after = block(x, each, reset, lengths)
            new.append(after)
        return x, tuple(new) if self.causal else ()

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.causal:
            return super().step(x, state)
        new = []
        for block, old in zip(self._blocks(), state, strict=True):
            x, after = block.step(x, old)
            new.append(after)
        return x, tuple(new)

    def _blocks(self) -> list[Any]:
        return list(self.blocks)


def reference(m: Stack, x: Tensor) -> Tensor:
    """The residual equations, each mixer by its own reference."""
    for block in m.blocks:
        x = reference_block(m, block, x)
    return x


def reference_block(m: Stack, block: Any, x: Tensor) -> Tensor:
    """One block's residual equations."""
    x = x + sys.modules[type(block.mixer).__module__].reference(block.mixer, _normed(m, block.mixer_norm, x))
    if block.feed_forward is None:
        return x
    return x + _fed(block.feed_forward, _normed(m, block.feed_forward_norm, x))


def _normed(m: Stack, norm: Any, x: Tensor) -> Tensor:
    if m.norm == "rms":
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def _fed(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, moe.MixtureOfExperts):
        return moe.reference(layer, x.flatten(0, -2)).view(x.shape)
    if isinstance(layer, GatedFeedForward):
        gate, up = layer.inner.weight.chunk(2)
        hidden = x @ gate.T
        return (hidden * torch.sigmoid(hidden) * (x @ up.T)) @ layer.out.weight.T
    hidden = x @ layer.up.weight.T + layer.up.bias
    return hidden * (1 + torch.erf(hidden / 2**0.5)) / 2 @ layer.out.weight.T + layer.out.bias
