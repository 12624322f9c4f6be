"""Mega."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.derived import Derived
from seriatim.core.errors import SeriatimError, check_one_of, check_size
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.mixers.state_space.invariant_base import System, read_system, real_system
from seriatim.ops.short_conv import last_inputs

__all__ = ["Mega", "MegaState"]

ATTENTIONS = ("softmax", "laplace")
BIASES = ("simple", "rotary")
LAPLACE_MEAN, LAPLACE_DEVIATION = math.sqrt(0.5), math.sqrt(0.25 / math.pi)


class MegaState(NamedTuple):
    """What is carried from segment to segment."""

    length: Tensor  # (B,) int64: tokens of the document
    average: Tensor  # (B, D, N)
    keys: Tensor  # (B, chunk - 1, key_dim): the last tokens'
    values: Tensor  # (B, chunk - 1, inner)


class Mega(Mixer):
    r"""Mega: moving averages of every feature, and one head of gated attention that they steer.

    .. math:: h_t = (1 - p \odot a) \odot h_{t-1} + p \odot \beta\, x_t, \quad
              m_t = \mathrm{silu}(\eta^\top h_t / \sqrt{N} + \omega \odot x_t), \quad p, a \in (0, 1)

    .. math:: z_t = \mathrm{silu}(W_z m_t), \quad q_t = \kappa_q \odot z_t + \mu_q, \quad
              k_t = \kappa_k \odot z_t + \mu_k, \quad v_t = \mathrm{silu}(W_v x_t)

    .. math:: o_t = \sum_s f(q_t \cdot k_s / \tau + b_{t-s})\, v_s, \quad
              \hat h_t = \mathrm{silu}(W_h m_t + U(\mathrm{silu}(W_r m_t) \odot o_t)), \quad
              y_t = g_t \odot \hat h_t + (1 - g_t) \odot x_t, \quad g_t = \sigma(W_g m_t)

    where linear maps have biases. A document is cut into chunks of `chunk` tokens, and a token attends to those of its
    chunk up to itself; what came before the chunk it knows by the averages. In a sequence not longer than `chunk` that
    is attention to everything. f is the softmax, with :math:`\tau = \sqrt{K}`, or the Laplace function
    :math:`(1 + \mathrm{erf}((s - \mu) / (\sigma \sqrt 2))) / 2` of each score by itself, with tau the number of tokens
    attended to. b is a number for each distance ("simple"), or the product of two vectors turned as rotary positions
    are ("rotary").

    Args:
        dim: features in and out.
        chunk: tokens of a chunk.
        state_size: N, averages of each feature.
        key_dim: K, features of queries and keys; even for rotary biases.
        inner: features of values; None is 2 dim.
        attention: f, "softmax" or "laplace".
        bias: "simple" or "rotary".

    Source: Ma et al., 2022, arXiv:2209.10655, section 3; the skip omega with its nonlinearity, and the initialisation,
    are its official code's.
    """

    def __init__(
        self,
        dim: int,
        chunk: int = 128,
        state_size: int = 16,
        key_dim: int = 64,
        inner: int | None = None,
        attention: str = "softmax",
        bias: str = "simple",
    ):
        super().__init__()
        check_size(dim=dim, chunk=chunk, state_size=state_size, key_dim=key_dim)
        width = 2 * dim if inner is None else inner
        check_size(inner=width)
        check_one_of("attention", attention, ATTENTIONS)
        check_one_of("bias", bias, BIASES)
        if bias == "rotary" and key_dim % 2:
            raise SeriatimError(f"key_dim is {key_dim}; it must be even for rotary biases")
        self.dim, self.chunk, self.state_size, self.key_dim, self.inner = dim, chunk, state_size, key_dim, inner
        self.attention, self.bias, self.width = attention, bias, width
        self.kept = Derived(real_system)
        sign = 1.0 - 2.0 * (torch.arange(state_size) % 2)
        self.delta, self.alpha = (nn.Parameter(0.2 * torch.randn(dim, state_size)) for _ in range(2))
        self.beta = nn.Parameter(sign + 0.02 * torch.randn(dim, state_size))
        self.eta = nn.Parameter(torch.randn(dim, state_size))
        self.omega = nn.Parameter(torch.randn(dim))
        self.value = nn.Linear(dim, width)
        self.gates = nn.Linear(dim, 2 * dim + key_dim + width)
        self.hidden = nn.Linear(width, dim)
        self.scale = nn.Parameter(0.02 * torch.randn(2, key_dim))
        self.shift = nn.Parameter(torch.zeros(2, key_dim))
        shape = (chunk,) if bias == "simple" else (2, key_dim)
        self.position = nn.Parameter(0.02 * torch.randn(shape))
        for layer in (self.value, self.gates, self.hidden):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def init_state(self, batch: int) -> MegaState:
        average = self.new_state(batch, self.dim, self.state_size)
        length = torch.zeros(batch, dtype=torch.long, device=average.device)
        keys, values = (self.new_state(batch, self.chunk - 1, size) for size in (self.key_dim, self.width))
        return MegaState(length, average, keys, values)

    def mix(
        self, x: Tensor, state: MegaState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, MegaState]:
        if x.size(1) == 0:
            return x, state
        averages, average = read_system(self.kept, self._averages, x, state.average, reset, lengths)
        m = F.silu(torch.addcmul(averages.squeeze(3), self.omega, x))
        gate, hidden, z, r = self.gates(m).split([self.dim, self.dim, self.key_dim, self.width], -1)
        q, k = torch.addcmul(self.shift, self.scale, F.silu(z).unsqueeze(2)).unbind(2)
        v = F.silu(self.value(x))
        positions = ragged.positions(reset, state.length, x.size(1))
        read = torch.cat([state.length[:, None], positions + 1], 1)
        length = read[:, -1] if lengths is None else read.gather(1, lengths.long()[:, None]).squeeze(1)
        wide, before = state.keys.dtype, self.chunk - 1
        keys, values = torch.cat([state.keys, k.to(wide)], 1), torch.cat([state.values, v.to(wide)], 1)
        o = self._attend(q.to(wide), keys, values, positions % self.chunk)
        document = None if reset is None else F.pad(ragged.segments(reset), (before, 0))
        keys, values = (last_inputs(z, document, lengths, self.chunk) for z in (keys, values))
        new = F.silu(hidden + self.hidden(F.silu(r) * o.to(r.dtype)))
        return x + (torch.sigmoid(gate) * (new - x)).to(x.dtype), MegaState(length, average, keys, values)

    def _averages(self) -> System:
        wide = state_dtype(self.delta.dtype)
        p = torch.sigmoid(self.delta.to(wide))
        A = 1 - p * torch.sigmoid(self.alpha.to(wide))
        return System(A, p * self.beta.to(wide), self.eta.to(wide).unsqueeze(1) * self.state_size**-0.5)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, seen: Tensor) -> Tensor:
        """What tokens read that see `seen` (B, T) tokens before them: block by block, each with the keys before it."""
        time = q.size(1)
        size, before = min(self.chunk, time), self.chunk - 1
        padding = -time % size
        q, seen = F.pad(q, (0, 0, 0, padding)).unflatten(1, (-1, size)), F.pad(seen, (0, padding))
        keys, values = (F.pad(z, (0, 0, 0, padding)).unfold(1, before + size, size) for z in (keys, values))
        place = torch.arange(before + size, device=q.device)
        distance = place[:size, None] + before - place  # (size, before + size)
        visible = (distance >= 0) & (distance <= seen.unflatten(1, (-1, size)).unsqueeze(3))
        bias = self._biases(q.dtype).index_select(0, distance.clamp(0, before).flatten()).view(distance.shape)
        scores = torch.einsum("bnlk,bnkj->bnlj", q, keys)
        if self.attention == "softmax":
            scores = scores * self.key_dim**-0.5 + bias
            weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), -1)
        else:
            scores = scores / visible.sum(-1, keepdim=True, dtype=scores.dtype) + bias
            weights = 0.5 + 0.5 * torch.erf((scores - LAPLACE_MEAN) / (LAPLACE_DEVIATION * math.sqrt(2)))
            weights = weights.masked_fill(~visible, 0.0)
        return torch.einsum("bnlj,bnvj->bnlv", weights, values.to(weights.dtype)).flatten(1, 2)[:, :time]

    def _biases(self, dtype: torch.dtype) -> Tensor:
        """(chunk,): of every distance."""
        position = self.position.to(dtype)
        if self.bias == "simple":
            return position
        half = self.key_dim // 2
        (a, b), (c, d) = (vector.split(half) for vector in position)
        rates = 10000.0 ** (-torch.arange(half, dtype=dtype, device=position.device) / half)
        angles = torch.arange(self.chunk, dtype=dtype, device=position.device)[:, None] * rates
        return angles.cos() @ (a * c + b * d) + angles.sin() @ (a * d - b * c)


def reference(m: Mega, x: Tensor) -> Tensor:
    """The paper's equations, one sequence and token at a time."""
    p, a = torch.sigmoid(m.delta), torch.sigmoid(m.alpha)
    rows = []
    for sequence in x:
        h, keys, values, out = torch.zeros_like(m.delta), [], [], []
        for t, u in enumerate(sequence):
            h = (1 - p * a) * h + p * m.beta * u[:, None]
            average = _silu((m.eta * h).sum(1) / m.state_size**0.5 + m.omega * u)
            gate, hidden, z, r = (m.gates.weight @ average + m.gates.bias).split([m.dim, m.dim, m.key_dim, m.width])
            q, k = m.scale * _silu(z) + m.shift
            keys.append(k)
            values.append(_silu(m.value.weight @ u + m.value.bias))
            seen = range(t - t % m.chunk, t + 1)
            scale = m.key_dim**-0.5 if m.attention == "softmax" else 1 / len(seen)
            scores = torch.stack([q @ keys[s] * scale + _bias(m, t, s) for s in seen])
            if m.attention == "softmax":
                weights = scores.exp() / scores.exp().sum()
            else:
                weights = torch.distributions.Normal(0.5**0.5, (1 / (4 * math.pi)) ** 0.5).cdf(scores)
            o = sum(weight * values[s] for weight, s in zip(weights, seen, strict=True))
            new = _silu(hidden + m.hidden.weight @ (_silu(r) * o) + m.hidden.bias)
            gate = torch.sigmoid(gate)
            out.append(gate * new + (1 - gate) * u)
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _silu(z: Tensor) -> Tensor:
    return z * torch.sigmoid(z)


def _bias(m: Mega, t: int, s: int) -> Tensor:
    """Of token t's score for token s."""
    if m.bias == "simple":
        return m.position[t - s]
    total, half = m.position.new_zeros(()), m.key_dim // 2
    for i in range(half):
        query, key = (
            _turned(vector[i], vector[i + half], place * 10000.0 ** (-i / half))
            for vector, place in zip(m.position, (t, s), strict=True)
        )
        total = total + query[0] * key[0] + query[1] * key[1]
    return total


def _turned(first: Tensor, second: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    cos, sin = math.cos(angle), math.sin(angle)
    return first * cos - second * sin, second * cos + first * sin
