"""Small correct mixers in plain torch, one of each kind, from which the faults are made.

Dimensions: B batch, T time, D model dim, W taps, N slots of a cache.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError, check_positive
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.core.state import State, where

__all__ = ["Around", "Cache", "CacheState", "Fade", "FadeState", "Pointwise", "Speaker", "reference"]


class FadeState(NamedTuple):
    memory: Tensor  # (B, D)
    tail: Tensor  # (B, W - 1, D), the last inputs


class Fade(Mixer):
    r"""A fading sum of a short convolution of the input, behind a gate.

    .. math:: u_t = \sum_w c_w x_{t-w}, \quad a_t = \sigma(A x_t + b), \quad h_t = a_t h_{t-1} + (1 - a_t) V u_t,
              \quad y_t = O (h_t \odot \mathrm{silu}(G x_t))
    """

    def __init__(self, dim: int, taps: int = 3):
        check_positive(dim=dim, taps=taps)
        super().__init__()
        self.dim, self.taps = dim, taps
        self.conv = nn.Parameter(torch.randn(taps, dim) / taps)
        self.decay = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def init_state(self, batch: int) -> FadeState:
        return FadeState(self.new_state(batch, self.dim), self.new_state(batch, self.taps - 1, self.dim))

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        start = self.init_state(x.size(0))
        outputs = [x.new_zeros(x.size(0), 0, self.dim)]
        for t in range(x.size(1)):
            before = state if reset is None else where(reset[:, t], start, state)
            y, after = self.token(x[:, t], before)
            state = after if lengths is None else where(t < lengths, after, before)
            outputs.append(y[:, None])
        return torch.cat(outputs, 1), state

    def token(self, x: Tensor, state: FadeState) -> tuple[Tensor, FadeState]:
        """One token, x (B, D)."""
        recent = torch.cat([state.tail, x[:, None].to(state.tail.dtype)], 1)
        mixed = (recent * self.conv.to(recent.dtype).flip(0)).sum(1)
        decay = self.decay(x).to(recent.dtype).sigmoid()
        memory = decay * state.memory + (1 - decay) * self.value(mixed.to(x.dtype)).to(recent.dtype)
        return self.out(memory.to(x.dtype) * F.silu(self.gate(x))), FadeState(memory, recent[:, 1:])


class CacheState(NamedTuple):
    keys: Tensor  # (B, N, D)
    values: Tensor  # (B, N, D)
    document: Tensor  # (B, N) int, -1 where the slot is empty or of an earlier document, 0 where it is read


class Cache(Mixer):
    r"""Softmax attention over all that was read, which it keeps: o_t = softmax_{s \le t}(q_t k_s / \sqrt{D}) v_s."""

    constant_state = False

    def __init__(self, dim: int):
        check_positive(dim=dim)
        super().__init__()
        self.dim = dim
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)

    def init_state(self, batch: int) -> CacheState:
        keys = self.new_state(batch, 0, self.dim)
        return CacheState(keys, keys, torch.zeros(batch, 0, dtype=torch.int64, device=keys.device))

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        batch, time = x.shape[:2]
        reset = x.new_zeros(batch, time, dtype=torch.bool) if reset is None else reset
        dtype = state_dtype(x.dtype)
        q, k, v = self.qkv(x).to(dtype).chunk(3, -1)
        documents = ragged.segments(reset)
        written = documents if lengths is None else documents.masked_fill(~ragged.real_tokens(lengths, time), -1)
        new = CacheState(*(torch.cat(pair, 1) for pair in zip(state, (k, v, written), strict=True)))
        index = torch.arange(time, device=x.device) + state.keys.size(1)
        past = torch.arange(new.keys.size(1), device=x.device) <= index[:, None]
        seen = past & (new.document[:, None] == documents[..., None])
        scores = (q @ new.keys.mT * self.dim**-0.5).masked_fill(~seen, -1e30)
        y = self.out((scores.softmax(-1) @ new.values).to(x.dtype))
        last = documents[:, -1:] if time else documents.new_zeros(batch, 1)
        if lengths is not None:
            last = documents.masked_fill(written < 0, 0).max(1, keepdim=True).values if time else last
        return y, new._replace(document=torch.where(new.document == last, 0, -1))


class Around(Mixer):
    r"""The mean of the whole document, before and after: y_t = M mean_{s in the document of t}(x_s) + tanh(x_t)."""

    causal = False

    def __init__(self, dim: int):
        check_positive(dim=dim)
        super().__init__()
        self.dim = dim
        self.mean = nn.Linear(dim, dim)

    def init_state(self, batch: int) -> tuple[()]:
        return ()

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        batch, time = x.shape[:2]
        documents = ragged.segments(x.new_zeros(batch, time, dtype=torch.bool) if reset is None else reset)
        same = documents[:, :, None] == documents[:, None, :]
        if lengths is not None:
            same = same & ragged.real_tokens(lengths, time)[:, None]
        weights = same.to(x.dtype)
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=1)
        return self.mean(weights @ x) + x.tanh(), ()


class Pointwise(Mixer):
    """Each token alone: y = tanh(P x). It carries nothing."""

    def __init__(self, dim: int):
        check_positive(dim=dim)
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(dim, dim)

    def init_state(self, batch: int) -> tuple[()]:
        return ()

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        return self.layer(x).tanh(), ()


class Speaker(Mixer):
    """A model that reads tokens: an embedding, a Fade and logits."""

    reads_tokens = True

    def __init__(self, vocab_size: int, dim: int):
        check_positive(vocab_size=vocab_size, dim=dim)
        super().__init__()
        self.vocab_size, self.dim = vocab_size, dim
        self.embedding = nn.Embedding(vocab_size, dim)
        self.fade = Fade(dim)
        self.logits = nn.Linear(dim, vocab_size)

    def init_state(self, batch: int) -> FadeState:
        return self.fade.init_state(batch)

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        embedded = self.embedding(x)
        y, state = self.fade(embedded, state, reset=reset, lengths=lengths)
        return self.logits(embedded + y), state


def reference(mixer: Mixer, x: Tensor) -> Tensor:
    """The equations of each toy, one sequence and one token at a time."""
    for kind, literal in _LITERAL.items():
        if isinstance(mixer, kind):
            return torch.stack([torch.stack(literal(mixer, list(sequence))) for sequence in x])
    raise SeriatimError(f"mixer is {type(mixer).__name__}; it must be a toy")


def _fade(mixer: Fade, sequence: list[Tensor]) -> list[Tensor]:
    outputs, memory = [], torch.zeros_like(sequence[0])
    for t, x in enumerate(sequence):
        mixed = sum(mixer.conv[w] * sequence[t - w] for w in range(mixer.taps) if t >= w)
        decay = 1 / (1 + torch.exp(-(mixer.decay.weight @ x + mixer.decay.bias)))
        memory = decay * memory + (1 - decay) * (mixer.value.weight @ mixed)
        gate = mixer.gate.weight @ x
        outputs.append(mixer.out.weight @ (memory * gate / (1 + torch.exp(-gate))))
    return outputs


def _cache(mixer: Cache, sequence: list[Tensor]) -> list[Tensor]:
    query, key, value = mixer.qkv.weight.chunk(3)
    outputs = []
    for t, x in enumerate(sequence):
        weights = torch.stack([torch.exp((query @ x) @ (key @ z) / mixer.dim**0.5) for z in sequence[: t + 1]])
        read = sum(w * (value @ z) for w, z in zip(weights / weights.sum(), sequence[: t + 1], strict=True))
        outputs.append(mixer.out.weight @ read + mixer.out.bias)
    return outputs


def _around(mixer: Around, sequence: list[Tensor]) -> list[Tensor]:
    mean = sum(sequence) / len(sequence)
    return [mixer.mean.weight @ mean + mixer.mean.bias + torch.tanh(x) for x in sequence]


def _pointwise(mixer: Pointwise, sequence: list[Tensor]) -> list[Tensor]:
    return [torch.tanh(mixer.layer.weight @ x + mixer.layer.bias) for x in sequence]


def _speaker(mixer: Speaker, sequence: list[Tensor]) -> list[Tensor]:
    embedded = [mixer.embedding.weight[token] for token in sequence]
    mixed = _fade(mixer.fade, embedded)
    return [mixer.logits.weight @ (x + y) + mixer.logits.bias for x, y in zip(embedded, mixed, strict=True)]


_LITERAL = {Fade: _fade, Cache: _cache, Around: _around, Pointwise: _pointwise, Speaker: _speaker}
