"""Prefix linear attention (JRT-RNN): the prompt is read as a whole, what follows it causally."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_divisible, check_size
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.mixers.linear_attention.base import with_ones

__all__ = ["PrefixLinear", "PrefixLinearState"]

EPSILON = 1e-12


class PrefixLinearState(NamedTuple):
    """What was read of the present document, and how much of its prompt is still to come."""

    prompt: Tensor  # (B,) int64, set by core.prompts.expect_prompt
    memory: Tensor  # (B, H, F, V + 1); the last column is the sum of the features themselves


class PrefixLinear(Mixer):
    r"""Linear attention that adds, for every token, all of the prompt under keys and values of its own.

    .. math:: o_t = \frac{\phi(q_t)^\top \big(\sum_{s \le t} \phi(k_s) v_s^\top
              + \sum_{s \le M} \phi(k^e_s) {v^e_s}^\top\big)}
              {\phi(q_t)^\top \big(\sum_{s \le t} \phi(k_s) + \sum_{s \le M} \phi(k^e_s)\big)}, \quad y_t = W_o o_t

    for each head, M the prompt's length, phi the second Taylor polynomial of the exponential:
    :math:`\phi(q)^\top \phi(k) = 1 + s + s^2 / 2, \; s = q^\top k / \sqrt{d}`, d the feature_dim.

    How long the prompt is stands in the state: `expect_prompt(mixer.init_state(B), lengths)` of
    :mod:`seriatim.core.prompts` says that the next tokens are one. Without it, there is none and the mixer is causal; a
    state of a whole model is marked the same way. Read in one segment, every token of the prompt sees all of it; of a
    prompt in pieces, a token sees the pieces up to its own, and the state after it is the same. A reset ends a prompt.

    Args:
        dim: features in and out.
        heads: memories; dim must be a multiple.
        feature_dim: d, of queries and keys.

    Source: Arora et al., 2024, arXiv:2407.05483, section 4; phi: arXiv:2402.18668. Weights are drawn from a normal
    distribution of deviation 0.02, as in its official code.
    """

    def __init__(self, dim: int, heads: int = 4, feature_dim: int = 16):
        super().__init__()
        check_size(feature_dim=feature_dim)
        check_divisible(dim=dim, heads=heads)
        self.dim, self.heads, self.feature_dim = dim, heads, feature_dim
        self.query = nn.Linear(dim, heads * feature_dim, bias=False)
        self.key = nn.Linear(dim, heads * feature_dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.prompt_key = nn.Linear(dim, heads * feature_dim, bias=False)
        self.prompt_value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for layer in (self.query, self.key, self.value, self.prompt_key, self.prompt_value, self.out):
            nn.init.normal_(layer.weight, std=0.02)

    def init_state(self, batch: int) -> PrefixLinearState:
        features = 1 + self.feature_dim + self.feature_dim * (self.feature_dim + 1) // 2
        memory = self.new_state(batch, self.heads, features, self.dim // self.heads + 1)
        return PrefixLinearState(torch.zeros(batch, dtype=torch.long, device=memory.device), memory)

    def mix(
        self, x: Tensor, state: PrefixLinearState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, PrefixLinearState]:
        time = x.size(1)
        in_prompt = ragged.real_tokens(state.prompt, time)
        real = None if lengths is None else ragged.real_tokens(lengths, time)
        if reset is not None:
            in_prompt = in_prompt & (ragged.segments(reset) == 0)
        if real is not None:
            in_prompt = in_prompt & real
        prompt_k = ragged.mask(self._features(self.prompt_key(x)), in_prompt)
        prompt_v = with_ones(self._values(self.prompt_value(x)))
        memory = state.memory + torch.einsum("bthf,bthv->bhfv", prompt_k, prompt_v).to(state.memory.dtype)
        k = self._features(self.key(x))
        k = k if real is None else ragged.mask(k, real)
        q = self._features(self.query(x))
        o, memory = _read(q, k, self._values(self.value(x)), memory, reset)
        left = (state.prompt - (time if lengths is None else lengths)).clamp(min=0)
        left = left if reset is None else left.masked_fill(reset.any(1), 0)
        return self.out(o.flatten(-2).to(x.dtype)), PrefixLinearState(left, memory)

    def _features(self, x: Tensor) -> Tensor:
        """phi, (B, T, H d) to (B, T, H, 1 + d + d (d + 1) / 2): a product of two different features stands once."""
        x = x.to(state_dtype(x.dtype)).unflatten(-1, (self.heads, -1)) * self.feature_dim**-0.25
        products = [x[..., i : i + 1] * x[..., i + 1 :] for i in range(self.feature_dim - 1)]
        return torch.cat([torch.ones_like(x[..., :1]), x, x * x * 0.5**0.5, *products], -1)

    def _values(self, x: Tensor) -> Tensor:
        """(B, T, dim) to (B, T, H, V)."""
        return x.to(state_dtype(x.dtype)).unflatten(-1, (self.heads, -1))


@linear_in("v")
def _read(q: Tensor, k: Tensor, v: Tensor, memory: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """The mean of the values, and the memory after the segment."""
    sums, memory = ops.matrix_scan(q, k, with_ones(v), state=memory, reset=reset)
    return sums[..., :-1] / (sums[..., -1:] + EPSILON), memory


def reference(m: PrefixLinear, x: Tensor, prompt: int = 0) -> Tensor:
    """The equation, one sequence, token and head at a time, where the first `prompt` tokens are the prompt."""
    width = m.dim // m.heads
    rows = []
    for sequence in x:
        out = []
        for t, u in enumerate(sequence):
            o = []
            for h in range(m.heads):
                i = slice(h * m.feature_dim, (h + 1) * m.feature_dim)
                j = slice(h * width, (h + 1) * width)
                query, above, below = m.query.weight[i] @ u, x.new_zeros(width), x.new_zeros(())
                pairs = [(m.key.weight[i] @ s, m.value.weight[j] @ s) for s in sequence[: t + 1]]
                pairs += [(m.prompt_key.weight[i] @ s, m.prompt_value.weight[j] @ s) for s in sequence[:prompt]]
                for key, value in pairs:
                    s = query @ key / m.feature_dim**0.5
                    weight = 1 + s + s * s / 2
                    above, below = above + weight * value, below + weight
                o.append(above / below)
            out.append(m.out.weight @ torch.cat(o))
        rows.append(torch.stack(out))
    return torch.stack(rows)
