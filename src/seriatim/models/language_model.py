"""A language model over any stack of mixers."""

import sys
from collections.abc import Sequence

from torch import Tensor, nn

from seriatim.backbones.stack import Stack
from seriatim.core.build import Spec
from seriatim.core.errors import check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
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
        feed_forward: "swiglu", "gelu" or "none".
        expansion: hidden units of a feed-forward layer as a multiple of dim (a gated one has two thirds of it).
        dropout: probability, on what each branch of the stack adds.
        tie_embeddings: the head's matrix is the embedding's (arXiv:1608.05859).
    """

    reads_tokens = True

    def __init__(
        self,
        vocab_size: int,
        dim: int = 256,
        layers: Sequence[Spec] = ("gla", "gla", "gla", "gla"),
        norm: str = "rms",
        feed_forward: str = "swiglu",
        expansion: float = 4.0,
        dropout: float = 0.0,
        tie_embeddings: bool = True,
    ):
        super().__init__()
        check_size(vocab_size=vocab_size, dim=dim)
        self.vocab_size, self.dim, self.norm, self.feed_forward = vocab_size, dim, norm, feed_forward
        self.expansion, self.dropout, self.tie_embeddings = expansion, dropout, tie_embeddings
        self.stack = Stack(dim, layers, norm, feed_forward, expansion, dropout)
        self.layers = self.stack.layers
        self.causal, self.constant_state = self.stack.causal, self.stack.constant_state
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.out_norm = build_norm(norm, dim)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        if tie_embeddings:
            self.head.weight = self.embedding.weight
        else:
            nn.init.normal_(self.head.weight, std=0.02)

    def init_state(self, batch: int) -> State:
        return self.stack.init_state(batch)

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        hidden, state = self.stack(self.embedding(x), state, reset=reset, lengths=lengths)
        return self.head(self.out_norm(hidden)), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, state = self.stack.step(self.embedding(x), state)
        return self.head(self.out_norm(hidden)), state


def reference(m: LanguageModel, tokens: Tensor) -> Tensor:
    """Embedding, the stack by its own reference, norm and head."""
    stack = sys.modules[type(m.stack).__module__]
    hidden = stack.reference(m.stack, m.embedding.weight[tokens])
    return stack._normed(m.stack, m.out_norm, hidden) @ m.head.weight.T
