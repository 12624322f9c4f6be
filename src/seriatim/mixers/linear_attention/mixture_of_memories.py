"""Mixture of memories: a router sends each token to some of several matrix memories."""

from typing import Any

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

__all__ = ["MixtureOfMemories"]

RULES = ("linear", "gla", "delta", "gated_delta")


class MixtureOfMemories(Mixer):
    r"""Several matrix memories, of which each token writes and reads a few; the others stay as they are.

    .. math:: s_t = \mathrm{softmax}(W_s x_t), \quad g_t^m = s_t^m / \sum_{m' \in \mathrm{top}} s_t^{m'}
              \text{ for } m \text{ in the top, else } 0

    .. math:: S_t^m = \mathrm{update}(S_{t-1}^m, W_k^m x_t, W_v^m x_t) \text{ where } g_t^m > 0, \quad
              o_t = \Big(S_t^{shared} + \sum_m g_t^m S_t^m\Big)^\top q_t, \quad
              y_t = W_o (\mathrm{rms}(o_t) \odot \mathrm{silu}(W_r x_t + b_r))

    The shared memory, where there is one, takes every token. `rule` is the update: "linear" adds k v^T, "gla" fades
    before by a gate for every key feature (as :class:`GLA`, gates of rank 16 and temperature 16), "delta" replaces what
    stands under k, "gated_delta" fades as a whole before; in these two q and k go through silu and have length 1. All
    memories are heads of one scan, in which a token that is not theirs neither writes nor fades: its cost is linear in
    time and in the number of memories. The router learns even use by a loss, collected by :mod:`seriatim.core.taps`:
    balance * M * sum of (share of choices) * (mean score).

    Args:
        dim: features in and out; a multiple of 2 * heads.
        heads: of each memory. Keys are half as wide as values.
        memories: M, without the shared one.
        active: how many of them a token goes to.
        shared: whether one more memory takes all tokens.
        rule: how a memory is written.
        balance: weight of the loss.

    Source: Du et al., 2025, arXiv:2502.13685, section 3; the loss of Fedus et al., 2021, arXiv:2101.03961, section 2.2.
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
    ):
        super().__init__()
        check_size(memories=memories, active=active)
        check_divisible(dim=dim, heads=heads)
        check_divisible(head_dim=dim // heads, key_ratio=2)
        check_one_of("rule", rule, RULES)
        check_positive(balance=balance)
        if active > memories:
            raise SeriatimError(f"active is {active}; it must be at most memories = {memories}")
        self.dim, self.heads, self.memories, self.active, self.shared = dim, heads, memories, active, shared
        self.rule, self.balance = rule, balance
        self.key_dim, self.value_dim, self.count = dim // heads // 2, dim // heads, memories + shared
        keys = heads * self.key_dim
        self.router = nn.Linear(dim, memories, bias=False) if memories > 1 else None
        self.query = nn.Linear(dim, keys, bias=False)
        self.key = nn.Linear(dim, self.count * keys, bias=False)
        self.value = nn.Linear(dim, self.count * dim, bias=False)
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

    def init_state(self, batch: int) -> Tensor:
        """(B, memories * H, K, V): the heads of the first memory first, those of the shared one last."""
        return self.new_state(batch, self.count * self.heads, self.key_dim, self.value_dim)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        real = None if lengths is None else ragged.real_tokens(lengths, x.size(1))
        weights = self._route(x, real)
        here = weights > 0 if real is None else (weights > 0) & real.unsqueeze(-1)
        o, state = self._scan(x, here.repeat_interleave(self.heads, -1), state, reset)
        o = (o.unflatten(2, (self.count, self.heads)) * weights[..., None, None]).sum(2).to(x.dtype)
        return self.out(gated(self.norm(o).flatten(-2), self.out_gate(x))), state

    def _route(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(B, T, count): the weight of each memory, 0 where the token does not go to it."""
        if self.router is None:
            return x.new_ones(*x.shape[:2], self.count, dtype=state_dtype(x.dtype))
        scores = self.router(x).to(state_dtype(x.dtype)).softmax(-1)
        own, other = scores.unsqueeze(-1), scores.unsqueeze(-2)
        first = torch.ones(self.memories, self.memories, dtype=torch.bool, device=x.device).tril(-1)  # of equal scores
        better = ((other > own) | ((other == own) & first)).to(scores.dtype).sum(-1)  # memories before this one
        best = scores.masked_fill(better >= self.active, 0)
        weights = best / best.sum(-1, keepdim=True)
        taps.tap(self, "weights", weights)
        if taps.is_collecting():
            taps.add_loss(self, "balance", self._imbalance(scores, weights > 0, real))
        return F.pad(weights, (0, 1), value=1.0) if self.shared else weights

    def _imbalance(self, scores: Tensor, chosen: Tensor, real: Tensor | None) -> Tensor:
        """`balance` where all memories are used alike, more where not; 0 without tokens."""
        if real is not None:
            scores, chosen = ragged.mask(scores, real), chosen & real.unsqueeze(-1)
        tokens = scores.sum().clamp(min=1)
        share, score = chosen.flatten(0, 1).sum(0) / (self.active * tokens), scores.flatten(0, 1).sum(0) / tokens
        return self.balance * self.memories * (share * score).sum()

    def _scan(self, x: Tensor, here: Tensor, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the heads answer, (B, T, count * H, V). here (B, T, count * H): which of them take the token."""
        q, k = (z.unflatten(-1, (-1, self.key_dim)) for z in (self.query(x), self.key(x)))
        v = self.value(x).unflatten(-1, (-1, self.value_dim))
        scale, still = self.key_dim**-0.5, ~here
        if self.rule in ("linear", "gla"):
            log_decay = self._gates(x).masked_fill(still.unsqueeze(-1), 0) if self.rule == "gla" else None
            q, k = torch.cat([q] * self.count, 2), k.masked_fill(still.unsqueeze(-1), 0)
            return ops.matrix_scan(q, k, v, log_decay, scale=scale, state=state, reset=reset)
        beta = self.beta(x).sigmoid().masked_fill(still, 0)
        log_decay = self.decay(x).masked_fill(still, 0) if self.rule == "gated_delta" else None
        q, k = torch.cat([l2_norm(silu(q))] * self.count, 2), l2_norm(silu(k))
        return ops.delta_scan(q, k, v, beta, log_decay, scale=scale, state=state, reset=reset)

    def _gates(self, x: Tensor) -> Tensor:
        """(B, T, count * H, K): how each key feature of each memory would fade."""
        low = self.gate_down(x).unflatten(-1, (self.count, -1))
        gate = torch.einsum("btmr,mkr->btmk", low, self.gate_up) + self.gate_bias
        return (F.logsigmoid(gate.to(state_dtype(gate.dtype))) / 16).flatten(-2).unflatten(-1, (-1, self.key_dim))


def reference(m: MixtureOfMemories, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token, memory and head at a time."""
    keys, rows = m.heads * m.key_dim, []
    for sequence in x:
        S = [[x.new_zeros(m.key_dim, m.value_dim) for _ in range(m.heads)] for _ in range(m.count)]
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
            read = []
            for h in range(m.heads):
                q = _address(m, m.query.weight[h * m.key_dim : (h + 1) * m.key_dim] @ u)
                o = x.new_zeros(m.value_dim)
                for i in taken:
                    first = i * keys + h * m.key_dim
                    k = _address(m, m.key.weight[first : first + m.key_dim] @ u)
                    v = m.value.weight[i * m.dim + h * m.value_dim : i * m.dim + (h + 1) * m.value_dim] @ u
                    S[i][h] = _updated(m, S[i][h], k, v, u, i, h)
                    o = o + weights[i] * (S[i][h].T @ q) / m.key_dim**0.5
                read.append(o / (o.square().mean() + 1e-5).sqrt() * m.norm.weight)
            g = m.out_gate.weight @ u + m.out_gate.bias
            out.append(m.out.weight @ (torch.cat(read) * g * torch.sigmoid(g)))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _address(m: MixtureOfMemories, z: Tensor) -> Tensor:
    if m.rule in ("linear", "gla"):
        return z
    z = z * torch.sigmoid(z)
    return z / (z @ z + 1e-6).sqrt()


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
