"""A language model over any stack of mixers."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seriatim.backbones.stack import Stack
from seriatim.core.build import Spec
from seriatim.core.errors import SeriatimError, check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.nn import ngram_heads as heads
from seriatim.nn.feed_forward import FeedForward
from seriatim.nn.norms import build_norm

__all__ = ["LanguageModel"]


class LanguageModel(Mixer):
    r"""Predicts the next token: an embedding, a stack of mixers, a norm and a linear head.

    .. math:: \mathrm{logits}_t = W\, \mathrm{norm}(\mathrm{stack}(E_{x_1}, \dots, E_{x_t})_t)

    It obeys the contract on token ids: `(tokens (B, T), state) -> (logits (B, T, vocab_size), state)`.

    Args:
        vocab_size: number of tokens; ids run from 0 to vocab_size - 1.
        dim: features of every layer.
        layers: a spec for each mixer, such as `["gla", "gla", {"mixer": "window", "size": 128}]`.
        norm: "rms" or "layer".
        feed_forward: "swiglu", "gelu", "moe" or "none", or a list with one for each layer; "moe" also as a mapping with
            options (:class:`seriatim.nn.moe.MixtureOfExperts`).
        expansion: hidden units of a feed-forward layer as a multiple of dim (a gated one has two thirds of it).
        dropout: probability, on what each branch of the stack adds.
        tie_embeddings: the head's matrix is the embedding's (arXiv:1608.05859).
        ngram_heads: orders of heads that repeat what followed the last tokens before, such as `[1, 2, 3]`, each a block
            of its own (arXiv:2401.12973); the state then grows with what is read.
        ngram_after: how many layers stand below those blocks.
    """

    reads_tokens = True

    def __init__(
        self,
        vocab_size: int,
        dim: int = 256,
        layers: Sequence[Spec] = ("gla", "gla", "gla", "gla"),
        norm: str = "rms",
        feed_forward: FeedForward | Sequence[FeedForward] = "swiglu",
        expansion: float = 4.0,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
        ngram_heads: Sequence[int] = (),
        ngram_after: int = 1,
    ):
        super().__init__()
        check_size(vocab_size=vocab_size, dim=dim)
        self.vocab_size, self.dim, self.norm, self.feed_forward = vocab_size, dim, norm, feed_forward
        self.expansion, self.dropout, self.tie_embeddings = expansion, dropout, tie_embeddings
        self.stack = Stack(dim, layers, norm, feed_forward, expansion, dropout)
        self.layers = self.stack.layers
        self.ngram_heads, self.ngram_after = _orders(ngram_heads), ngram_after
        if not 0 <= ngram_after <= len(self.layers):
            raise SeriatimError(f"ngram_after is {ngram_after}; it must be from 0 to the {len(self.layers)} layers")
        self.ngrams = nn.ModuleList(heads.NGramBlock(dim, order, norm) for order in self.ngram_heads)
        self.causal = self.stack.causal
        self.constant_state = self.stack.constant_state and not self.ngram_heads
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.out_norm = build_norm(norm, dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        if tie_embeddings:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=0.02)

    def init_state(self, batch: int) -> State:
        state = self.stack.init_state(batch)
        return (state, self._init_ngrams(batch)) if self.ngram_heads and self.causal else state

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        if self.ngram_heads:
            return self._mix_ngrams(x, state, reset, lengths)
        hidden, state = self.stack(self.embedding(x), state, reset=reset, lengths=lengths)
        return self.head(self.out_norm(hidden)), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if self.ngram_heads:
            return super().step(x, state)
        hidden, state = self.stack.step(self.embedding(x), state)
        return self.head(self.out_norm(hidden)), state

    def _mix_ngrams(
        self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, State]:
        """The same with the n-gram blocks between two layers: they, unlike a mixer of features, see the tokens."""
        below, above = slice(self.ngram_after), slice(self.ngram_after, None)
        stack, ngrams = state if self.causal else ((), self._init_ngrams(x.size(0)))
        hidden, low = self.stack.run(below, self.embedding(x), stack, reset, lengths)
        after = []
        for block, old in zip(self._blocks(), ngrams, strict=True):
            hidden, new = block(hidden, x, old, reset, lengths)
            after.append(new)
        hidden, high = self.stack.run(above, hidden, stack, reset, lengths)
        logits = self.head(self.out_norm(hidden))
        return logits, (low + high, tuple(after)) if self.causal else ()

    def _init_ngrams(self, batch: int) -> tuple[heads.NGramState, ...]:
        return tuple(block.head.init_state(batch) for block in self._blocks())

    def _blocks(self) -> list[Any]:
        return list(self.ngrams)


def _orders(ngram_heads: Sequence[int]) -> list[int]:
    if isinstance(ngram_heads, str) or not isinstance(ngram_heads, Sequence):
        raise SeriatimError(f"ngram_heads is {ngram_heads!r}; it must be a list of orders, such as [1, 2, 3]")
    check_size(**{f"ngram_heads[{index}]": order for index, order in enumerate(ngram_heads)})
    return list(ngram_heads)


def reference(m: LanguageModel, tokens: Tensor) -> Tensor:
    """Embedding, the stack and the n-gram heads by their own references, norm and head."""
    stack = sys.modules[type(m.stack).__module__]
    hidden = m.embedding.weight[tokens]
    for index, block in enumerate([*m.stack.blocks, None]):
        for ngram in m._blocks() if index == m.ngram_after else ():
            hidden = hidden + heads.reference(ngram.head, stack._normed(m.stack, ngram.head_norm, hidden), tokens)
            up, _, down = ngram.feed_forward
            inner = stack._normed(m.stack, ngram.feed_forward_norm, hidden) @ up.weight.T + up.bias
            hidden = hidden + (inner * torch.sigmoid(inner)) @ down.weight.T + down.bias
        hidden = hidden if block is None else stack.reference_block(m.stack, block, hidden)
    return stack._normed(m.stack, m.out_norm, hidden) @ m.head.weight.T
