"""Mixture of memories: a router sends each token to some of several matrix memories."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged, taps
from seriatim.core.errors import SeriatimError, check_divisible, check_one_of, check_positive, check_size
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.mixers.linear_attention.base import init_projections
from seriatim.nn.decay import HeadDecay
from seriatim.nn.norms import RMSNorm, l2_norm
from seriatim.nn.pointwise import gated, silu
from seriatim.nn.routing import imbalance, top_scores
from seriatim.nn.short_conv import ShortConv

__all__ = ["MixtureOfMemories", "MixtureState"]

RULES = ("linear", "gla", "delta", "gated_delta")


class MixtureState(NamedTuple):
    """What is carried where there is a convolution."""

    tails: Tensor  # (B, count, conv_size - 1, F): its last inputs, of every memory's own tokens
    memory: Tensor  # (B, count * H, K, V)


class MixtureOfMemories(Mixer):
    r"""Several matrix memories, of which each token writes and reads a few; the others stay as they are.

    .. math:: s_t = \mathrm{softmax}(W_s x_t), \quad g_t^m = s_t^m / \sum_{m' \in \mathrm{top}} s_t^{m'}
              \text{ for } m \text{ in the top, else } 0

    .. math:: S_t^m = \mathrm{update}(S_{t-1}^m, W_k^m x_t, W_v^m x_t) \text{ where } g_t^m > 0, \quad
              o_t = \Big(S_t^{shared} + \sum_m g_t^m S_t^m\Big)^\top q_t, \quad
              y_t = W_o (\mathrm{rms}(o_t) \odot \mathrm{silu}(W_r x_t + b_r))

    The shared memory, where there is one, takes every token. `rule` is the update: "linear" adds k v^T, "gla" fades
    before by a gate for every key feature (as :class:`GLA`, gates of rank 16 and temperature 16), "delta" replaces what
    stands under k, "gated_delta" fades as a whole before; in these two q and k go through silu and have length 1. With
    a `conv_size`, q, k and v are first silu(conv), where a memory's convolution, the same for all, goes over the tokens
    that it takes as if there were no others; the official layer has one of 4 taps. All memories are heads of one scan,
    in which a token that is not theirs neither writes nor fades: its cost is linear in time and in the number of
    memories. The router learns even use by a loss, collected by :mod:`seriatim.core.taps`: balance * M * sum of (share
    of choices) * (mean score).

    Args:
        dim: features in and out; a multiple of 2 * heads.
        heads: of each memory. Keys are half as wide as values.
        memories: M, without the shared one.
        active: how many of them a token goes to.
        shared: whether one more memory takes all tokens.
        rule: how a memory is written.
        balance: weight of the loss.
        conv_size: taps of the short convolution of q, k and v; None is none.

    Source: Du et al., 2025, arXiv:2502.13685, section 3; the convolution: its official code; the loss: Fedus et al.,
        2021, arXiv:2101.03961, section 2.2.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        memories: int = 4,
        active: int = 2,
        shared: bool = True,
        rule: str = "gated_delta",
        balance: float = 0.01,
        conv_size: int | None = None,
    ):
        super().__init__()
        check_size(memories=memories, active=active)
        if conv_size is not None:
            check_size(conv_size=conv_size)
        check_divisible(dim=dim, heads=heads)
        check_divisible(head_dim=dim // heads, key_ratio=2)
        check_one_of("rule", rule, RULES)
        check_positive(balance=balance)
        if active > memories:
            raise SeriatimError(f"active is {active}; it must be at most memories = {memories}")
        self.dim, self.heads, self.memories, self.active, self.shared = dim, heads, memories, active, shared
        self.rule, self.balance, self.conv_size = rule, balance, conv_size
        self.key_dim, self.value_dim, self.count = dim // heads // 2, dim // heads, memories + shared
        keys = heads * self.key_dim
        self.router = nn.Linear(dim, memories, bias=False) if memories > 1 else None
        self.query = nn.Linear(dim, keys, bias=False)
        self.key = nn.Linear(dim, self.count * keys, bias=False)
        self.value = nn.Linear(dim, self.count * dim, bias=False)
        self.conv = None if conv_size is None else ShortConv(2 * keys + dim, conv_size, bias=False)
        self.out_gate = nn.Linear(dim, dim)
        self.norm = RMSNorm(self.value_dim)
        self.out = nn.Linear(dim, dim, bias=False)
        layers = [self.query, self.out_gate, self.out]
        if rule == "gla":
            self.gate_down = nn.Linear(dim, self.count * 16, bias=False)
            self.gate_up = nn.Parameter(torch.empty(self.count, keys, 16))
            self.gate_bias = nn.Parameter(torch.zeros(self.count, keys))
            init_projections(*self.gate_down.weight.split(16), *self.gate_up)
        if rule in ("delta", "gated_delta"):
            self.beta = nn.Linear(dim, self.count * heads, bias=False)
            layers.append(self.beta)
        if rule == "gated_delta":
            self.decay = HeadDecay(dim, self.count * heads)
        init_projections(*[z.weight for z in layers], *self.key.weight.split(keys), *self.value.weight.split(dim))
        nn.init.zeros_(self.out_gate.bias)

    def init_state(self, batch: int) -> Tensor | MixtureState:
        """The memory (B, count * H, K, V): the heads of the first memory first, those of the shared one last."""
        memory = self.new_state(batch, self.count * self.heads, self.key_dim, self.value_dim)
        if self.conv is None:
            return memory
        return MixtureState(self.new_state(batch, self.count, self.conv.size - 1, self.conv.dim), memory)

    def mix(
        self, x: Tensor, state: Tensor | MixtureState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | MixtureState]:
        real = None if lengths is None else ragged.real_tokens(lengths, x.size(1))
        weights = self._route(x, real)
        here = weights > 0 if real is None else (weights > 0) & real.unsqueeze(-1)
        tails, memory = (None, state) if isinstance(state, Tensor) else state
        q, k, v, tails = self._queries_keys_values(x, here, tails, reset)
        o, memory = self._scan(x, q, k, v, here.repeat_interleave(self.heads, -1), memory, reset)
        o = (o.unflatten(2, (self.count, self.heads)) * weights[..., None, None]).sum(2).to(x.dtype)
        y = self.out(gated(self.norm(o).flatten(-2), self.out_gate(x)))
        return y, memory if tails is None else MixtureState(tails, memory)

    def _route(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(B, T, count): the weight of each memory, 0 where the token does not go to it."""
        if self.router is None:
            return x.new_ones(*x.shape[:2], self.count, dtype=state_dtype(x.dtype))
        scores = self.router(x).to(state_dtype(x.dtype)).softmax(-1)
        best = top_scores(scores, self.active)
        weights = best / best.sum(-1, keepdim=True)
        taps.tap(self, "weights", weights)
        if taps.is_collecting():
            chosen = best > 0
            if real is not None:
                scores, chosen = ragged.mask(scores, real), chosen & real.unsqueeze(-1)
            taps.add_loss(self, "balance", self.balance * imbalance(scores, chosen, self.active))
        return F.pad(weights, (0, 1), value=1.0) if self.shared else weights

    def _queries_keys_values(
        self, x: Tensor, here: Tensor, tails: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Of every memory's heads, (B, T, count * H, K or V), and the new tails. here (B, T, count): who takes what."""
        q, k, v = (z(x).unflatten(-1, (-1, size)) for z, size in self._projections())
        if self.conv is not None and tails is not None:
            features = torch.cat([q.expand(-1, -1, self.count, -1), k, v], -1)
            features, tails = _conv_of_own_tokens(self.conv, features, here, tails, reset)
            q, k, v = silu(features).split([q.size(-1), k.size(-1), v.size(-1)], -1)
        q, k = (z.unflatten(-1, (self.heads, self.key_dim)) for z in (q, k))
        if self.rule in ("delta", "gated_delta"):
            q, k = (l2_norm(silu(z) if self.conv is None else z) for z in (q, k))
        q = torch.cat([q] * (self.count // q.size(2)), 2)
        return q.flatten(2, 3), k.flatten(2, 3), v.flatten(2).unflatten(-1, (-1, self.value_dim)), tails

    def _projections(self) -> list[tuple[nn.Linear, int]]:
        """Each with its width for a memory."""
        keys = self.heads * self.key_dim
        return [(self.query, keys), (self.key, keys), (self.value, self.dim)]

    def _scan(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, here: Tensor, memory: Tensor, reset: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What the heads answer, (B, T, count * H, V). here (B, T, count * H): which of them take the token."""
        scale, still = self.key_dim**-0.5, ~here
        if self.rule in ("linear", "gla"):
            log_decay = self._gates(x).masked_fill(still.unsqueeze(-1), 0) if self.rule == "gla" else None
            k = k.masked_fill(still.unsqueeze(-1), 0)
            return ops.matrix_scan(q, k, v, log_decay, scale=scale, state=memory, reset=reset)
        beta = self.beta(x).sigmoid().masked_fill(still, 0)
        log_decay = self.decay(x).masked_fill(still, 0) if self.rule == "gated_delta" else None
        return ops.delta_scan(q, k, v, beta, log_decay, scale=scale, state=memory, reset=reset)

    def _gates(self, x: Tensor) -> Tensor:
        """(B, T, count * H, K): how each key feature of each memory would fade."""
        low = self.gate_down(x).unflatten(-1, (self.count, -1))
        gate = torch.einsum("btmr,mkr->btmk", low, self.gate_up) + self.gate_bias
        return (F.logsigmoid(gate.to(state_dtype(gate.dtype))) / 16).flatten(-2).unflatten(-1, (-1, self.key_dim))


def _conv_of_own_tokens(
    conv: ShortConv, x: Tensor, here: Tensor, tails: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The convolution over the tokens of x (B, T, count, F) that are `here` (B, T, count), as if there were no others.

    tails: (B, count, W - 1, F). Outputs of the other tokens mean nothing.
    """
    batch, time, count, _ = x.shape
    if time == 0:
        return x, tails
    x, here, after = x.transpose(1, 2).flatten(0, 1), here.transpose(1, 2).flatten(0, 1), tails.flatten(0, 1)
    reset = None if reset is None else reset.repeat_interleave(count, 0)
    if time == 1:
        before = after if reset is None else after.masked_fill(reset.unsqueeze(-1), 0)
        y, after = conv(x, before)
        after = torch.where(here.unsqueeze(-1), after, before)
    else:
        order, begins, document = (~here).long().argsort(dim=1, stable=True), None, None
        if reset is not None:  # may come at a token that is not here, so at the next that is
            document = ragged.segments(reset)
            own = document.gather(1, order)
            begins = own != F.pad(own[:, :-1], (1, 0))
        y, after = conv(x.gather(1, order.unsqueeze(-1).expand_as(x)), after, begins, here.sum(1))
        if document is not None:
            over = (document * here).amax(1) < document[:, -1]
            after = after.masked_fill(over[:, None, None], 0)
        place = (here.cumsum(1) - 1).clamp(min=0)
        y = y.gather(1, place.unsqueeze(-1).expand_as(x))
    return y.unflatten(0, (batch, count)).transpose(1, 2), after.unflatten(0, (batch, count))


def reference(m: MixtureOfMemories, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token, memory and head at a time."""
    rows = []
    for sequence in x:
        S = [[x.new_zeros(m.key_dim, m.value_dim) for _ in range(m.heads)] for _ in range(m.count)]
        own: list[list[Tensor]] = [[] for _ in range(m.count)]  # what the tokens of each memory brought
        out = []
        for u in sequence:
            weights: list[Any] = [1.0] * m.count
            taken = list(range(m.count))
            if m.router is not None:
                scores = torch.exp(m.router.weight @ u)
                scores = scores / scores.sum()
                order = sorted(range(m.memories), key=lambda i: -scores[i].item())[: m.active]
                total = sum(scores[i] for i in order)
                taken = [*order, *taken[m.memories :]]
                for i in order:
                    weights[i] = scores[i] / total
            o = [x.new_zeros(m.value_dim) for _ in range(m.heads)]
            for i in taken:
                q, k, v = _token(m, u, own[i], i)
                for h in range(m.heads):
                    S[i][h] = _updated(m, S[i][h], k[h], v[h], u, i, h)
                    o[h] = o[h] + weights[i] * (S[i][h].T @ q[h]) / m.key_dim**0.5
            read = torch.cat([z / (z.square().mean() + 1e-5).sqrt() * m.norm.weight for z in o])
            g = m.out_gate.weight @ u + m.out_gate.bias
            out.append(m.out.weight @ (read * g * torch.sigmoid(g)))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _token(m: MixtureOfMemories, u: Tensor, own: list[Tensor], i: int) -> tuple[Tensor, Tensor, Tensor]:
    """The query, key and value (H, K or V) that the token u brings to memory i, after those of `own`."""
    keys, delta = m.heads * m.key_dim, m.rule in ("delta", "gated_delta")
    k, v = m.key.weight[i * keys : (i + 1) * keys] @ u, m.value.weight[i * m.dim : (i + 1) * m.dim] @ u
    q = m.query.weight @ u
    if m.conv is not None:
        own.append(torch.cat([q, k, v]))
        recent = torch.stack(own[-m.conv.size :], 1)
        mixed = (m.conv.weight[:, -recent.size(1) :] * recent).sum(1)
        q, k, v = (mixed * torch.sigmoid(mixed)).split([keys, keys, m.dim])
    elif delta:
        q, k = q * torch.sigmoid(q), k * torch.sigmoid(k)
    q, k, v = (z.view(m.heads, -1) for z in (q, k, v))
    if delta:
        q, k = (z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt() for z in (q, k))
    return q, k, v


def _updated(m: MixtureOfMemories, S: Tensor, k: Tensor, v: Tensor, u: Tensor, i: int, h: int) -> Tensor:
    """The memory after the token, by the rule."""
    if m.rule == "linear":
        return S + torch.outer(k, v)
    if m.rule == "gla":
        some = slice(h * m.key_dim, (h + 1) * m.key_dim)
        gate = m.gate_up[i, some] @ (m.gate_down.weight[16 * i : 16 * (i + 1)] @ u) + m.gate_bias[i, some]
        return torch.diag(torch.sigmoid(gate) ** (1 / 16)) @ S + torch.outer(k, v)
    head = i * m.heads + h
    beta, alpha = torch.sigmoid(m.beta.weight[head] @ u), u.new_ones(())
    if m.rule == "gated_delta":
        step = torch.log1p(torch.exp(m.decay.step.weight[head] @ u + m.decay.step_bias[head]))
        alpha = torch.exp(-torch.exp(m.decay.A_log[head]) * step)
    transition = alpha * (torch.eye(m.key_dim, dtype=u.dtype) - beta * torch.outer(k, k))
    return transition @ S + beta * torch.outer(k, v)
