"""Two small models on the contract, one of constant state and one whose state grows, that need nothing but core."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim.core.mixer import Mixer

__all__ = ["CacheModel", "CacheState", "FadingModel"]


class FadingModel(Mixer):
    """h = a h + e(token), logits = W tanh(h): constant memory."""

    reads_tokens = True

    def __init__(self, vocab_size: int = 11, dim: int = 8):
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.embed = nn.Embedding(vocab_size, dim)
        self.out = nn.Linear(dim, vocab_size)

    def init_state(self, batch: int) -> Tensor:
        return self.new_state(batch, self.dim)

    def mix(self, x, state, reset, lengths):
        hidden = []
        for t, token in enumerate(x.unbind(1)):
            if reset is not None:
                state = torch.where(reset[:, t, None], 0.0, state)
            new = 0.8 * state + self.embed(token)
            state = new if lengths is None else torch.where((t < lengths)[:, None], new, state)
            hidden.append(state)
        hidden = torch.stack(hidden, 1) if hidden else self.new_state(x.size(0), 0, self.dim)
        return self.out(hidden.tanh()), state


class CacheState(NamedTuple):
    tokens: Tensor  # (B, S) int, -1 where empty


class CacheModel(Mixer):
    """The mean of the embeddings of everything read so far: the state is a cache that grows."""

    constant_state = False
    reads_tokens = True

    def __init__(self, vocab_size: int = 11, dim: int = 8):
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.embed = nn.Embedding(vocab_size, dim)
        self.out = nn.Linear(dim, vocab_size)

    def init_state(self, batch: int) -> CacheState:
        return CacheState(torch.zeros(batch, 0, dtype=torch.long))

    def mix(self, x, state, reset, lengths):
        cache, hidden = state.tokens, []
        for t, token in enumerate(x.unbind(1)):
            if reset is not None:
                cache = torch.where(reset[:, t, None], -1, cache)
            real = torch.ones_like(token, dtype=torch.bool) if lengths is None else t < lengths
            cache = torch.cat([cache, torch.where(real, token, -1)[:, None]], 1)
            full = (cache >= 0)[..., None]
            mean = (self.embed(cache.clamp(0)) * full).sum(1) / full.sum(1).clamp(1)
            hidden.append(mean + self.embed(token))
        hidden = torch.stack(hidden, 1) if hidden else self.new_state(x.size(0), 0, self.dim)
        return self.out(hidden), CacheState(cache)
