"""The family of softmax attention over the tokens read so far."""

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import SeriatimError, check_divisible, check_positive
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.core.state import State
from seriatim.nn.rotary import rotate, turns

__all__ = ["AttentionMixer", "reference_attention"]


class AttentionMixer(Mixer):
    """Queries, keys and values, rotary positions counted from the start of each document, and a cache as state.

    A method says which `window` of the past is seen (None: all of it) and makes the empty cache; the rest is done here.
    """

    window: int | None = None

    def __init__(self, dim: int, heads: int, kv_heads: int | None, rotary_base: float):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        check_positive(rotary_base=rotary_base)
        if kv_heads is not None:
            check_divisible(heads=heads, kv_heads=kv_heads)
        if dim // heads % 2:
            raise SeriatimError(f"dim is {dim} and heads is {heads}; dim / heads must be even for rotary positions")
        self.dim, self.heads, self.kv_heads, self.rotary_base = dim, heads, kv_heads, rotary_base
        self.head_dim, self.groups = dim // heads, kv_heads or heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * self.groups * self.head_dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for weight in (self.query.weight, *self.key_value.weight.chunk(2), self.out.weight):
            nn.init.xavier_uniform_(weight)

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        q = self.query(x).unflatten(-1, (self.heads, self.head_dim))
        k, v = self.key_value(x).unflatten(-1, (2, self.groups, self.head_dim)).unbind(2)
        positions = ragged.positions(reset, state.length, x.size(1))
        angles = turns(positions, self.head_dim, self.rotary_base, state_dtype(x.dtype))
        q, k = rotate(q, angles), rotate(k, angles)
        o, state = ops.attention(q, k, v, window=self.window, state=state, reset=reset, lengths=lengths)
        return self.out(o.flatten(-2)), state


def reference_attention(m: AttentionMixer, x: Tensor) -> Tensor:
    """Softmax attention with rotary positions, one sequence, token and head at a time."""
    w_k, w_v = m.key_value.weight.chunk(2)
    angles = [[t * m.rotary_base ** (-2 * i / m.head_dim) for i in range(m.head_dim // 2)] for t in range(x.size(1))]
    rows = []
    for sequence in x:
        out = []
        for t, u in enumerate(sequence):
            first = 0 if m.window is None else max(0, t - m.window + 1)
            o = []
            for h in range(m.heads):
                g = h * m.groups // m.heads
                i, j = slice(h * m.head_dim, (h + 1) * m.head_dim), slice(g * m.head_dim, (g + 1) * m.head_dim)
                q = _turned(m.query.weight[i] @ u, angles[t])
                keys = [_turned(w_k[j] @ sequence[s], angles[s]) for s in range(first, t + 1)]
                weights = torch.softmax(torch.stack([q @ k / m.head_dim**0.5 for k in keys]), 0)
                o.append(sum(weights[s - first] * (w_v[j] @ sequence[s]) for s in range(first, t + 1)))
            out.append(m.out.weight @ torch.cat(o))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _turned(vector: Tensor, angles: list[float]) -> Tensor:
    """Each pair (i, i + K/2) of the vector turned in its plane by a rotation matrix."""
    half = len(angles)
    pairs = []
    for i, angle in enumerate(angles):
        a = torch.tensor(angle, dtype=vector.dtype)
        rotation = torch.stack([torch.stack([a.cos(), -a.sin()]), torch.stack([a.sin(), a.cos()])])
        pairs.append(rotation @ torch.stack([vector[i], vector[i + half]]))
    return torch.stack(pairs, 1).flatten()
