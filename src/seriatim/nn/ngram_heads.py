"""Attention heads that are wired by hand: they look for what followed the last tokens the last times they were read.

Dimensions: B batch, T time, S slots of the cache, N order, D model dim.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.errors import check_size
from seriatim.core.mixer import state_dtype
from seriatim.nn.norms import build_norm

__all__ = ["NGramBlock", "NGramHead", "NGramState", "ngram_weights"]


class NGramState(NamedTuple):
    """What a head of order N has read of the present document; -1 stands where there is no token."""

    contexts: Tensor  # (B, S, N) int64, the N tokens before each token that was read; -1 in an empty slot
    hidden: Tensor  # (B, S, D), the features of those tokens
    recent: Tensor  # (B, N) int64, the last N tokens


class NGramHead(nn.Module):
    r"""Attends, evenly, to the tokens that followed the earlier occurrences of the last N tokens.

    .. math:: y_t = W_0 \sum_j A_{tj} h_j + W_1 h_t, \quad
              A_{tj} \propto [\,j < t\,] \prod_{i=1}^{N} [\, x_{j-i} = x_{t-i+1} \,]

    with biases; A_t is 0 where the N tokens are new, or fewer than N were read. Nothing in A is learned: it counts
    (N + 1)-grams. h are features, x token ids.

    Args:
        dim: features in and out.
        order: N, tokens that must agree; with 1 it is an induction head.

    Source: Akyürek et al., 2024, arXiv:2401.12973, section 6; its official code.
    """

    def __init__(self, dim: int, order: int = 1):
        super().__init__()
        check_size(dim=dim, order=order)
        self.dim, self.order = dim, order
        self.followers = nn.Linear(dim, dim)
        self.present = nn.Linear(dim, dim)

    def init_state(self, batch: int) -> NGramState:
        """The state before anything was read."""
        weight = self.present.weight
        tokens = torch.full((batch, self.order), -1, device=weight.device)
        hidden = weight.new_zeros(batch, 0, self.dim, dtype=state_dtype(weight.dtype))
        return NGramState(tokens.unsqueeze(1)[:, :0], hidden, tokens)

    def forward(
        self, h: Tensor, tokens: Tensor, state: NGramState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, NGramState]:
        """h (B, T, D) and tokens (B, T) int to (B, T, D) and the state, which grows by T slots."""
        current, before, recent = _contexts(tokens, state.recent, reset, lengths)
        contexts = torch.cat([state.contexts, before], 1)
        hidden = torch.cat([state.hidden, h.to(state.hidden.dtype)], 1)
        weights = ngram_weights(current, contexts, reset, hidden.dtype)
        found = (weights @ hidden).to(h.dtype)
        if reset is not None:  # what came before the last document is forgotten
            document = ragged.segments(reset)
            last = document[:, -1:] if reset.size(1) else document.new_zeros(len(document), 1)
            document = F.pad(document, (state.contexts.size(1), 0))
            contexts, hidden = ragged.mask(contexts, document == last, -1), ragged.mask(hidden, document == last)
        return self.followers(found) + self.present(h), NGramState(contexts, hidden, recent)


def ngram_weights(current: Tensor, contexts: Tensor, reset: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The attention A (B, T, S) of T tokens over S slots, the last T of which are those tokens.

    Args:
        current: (B, T, N), the last N tokens as of each token; -1 where its document has fewer.
        contexts: (B, S, N), the N tokens before each slot.
        reset: (B, T) bool, a new document begins at this token.
        dtype: of the weights.
    """
    time, slots = current.size(1), contexts.size(1)
    index = torch.arange(slots, device=current.device)
    match = (index < index[slots - time :, None]) & (current >= 0).all(-1, keepdim=True)
    for i in range(current.size(2)):
        match = match & (current[:, :, None, i] == contexts[:, None, :, i])
    if reset is not None:
        document = ragged.segments(reset)
        match = match & (document[:, :, None] == F.pad(document, (slots - time, 0))[:, None])
    weights = match.to(dtype)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1)


def _contexts(
    tokens: Tensor, recent: Tensor, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The last N tokens as of each token and before each token (B, T, N), the latest first, and after all (B, N)."""
    time, order = tokens.size(1), recent.size(1)
    read = torch.cat([recent.flip(1), tokens.to(recent.dtype)], 1)
    current = read.unfold(1, order, 1).flip(2)  # (B, T + 1, N): before anything, and as of each token
    before, current = current[:, :time], current[:, 1:]
    if reset is not None:
        age = torch.arange(order, device=tokens.device)
        start = torch.full_like(recent[:, 0], time + order)  # as if the document had begun long before
        position = ragged.positions(reset, start, time)[..., None]
        current = current.masked_fill(age > position, -1)
        before = before.masked_fill(age >= position, -1)
    latest = torch.cat([recent[:, None], current], 1)
    if lengths is None:
        return current, before, latest[:, -1]
    real = ragged.real_tokens(lengths, time)
    last = lengths.long()[:, None, None].expand(-1, 1, order)
    return ragged.mask(current, real, -1), ragged.mask(before, real, -1), latest.gather(1, last).squeeze(1)


class NGramBlock(nn.Module):
    r"""A residual block of one head: x + head(norm(x)), then x + ff(norm(x)), the hidden layer of ff as wide as x.

    It stands between any two layers of a model that knows its tokens. Source: as :class:`NGramHead`.

    Args:
        dim: features in and out.
        order: N, tokens that must agree.
        norm: "rms" or "layer".
    """

    def __init__(self, dim: int, order: int, norm: str = "rms"):
        super().__init__()
        self.head = NGramHead(dim, order)
        self.head_norm, self.feed_forward_norm = build_norm(norm, dim), build_norm(norm, dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(
        self, x: Tensor, tokens: Tensor, state: NGramState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, NGramState]:
        """As the head's."""
        y, state = self.head(self.head_norm(x), tokens, state, reset, lengths)
        x = x + y
        return x + self.feed_forward(self.feed_forward_norm(x)), state


def reference(m: NGramHead, h: Tensor, tokens: Tensor) -> Tensor:
    """The equation, one sequence and token at a time: look through the whole past for the last N tokens."""
    rows = []
    for features, ids in zip(h, tokens.tolist(), strict=True):
        out = []
        for t, u in enumerate(features):
            last = ids[t - m.order + 1 : t + 1] if t >= m.order - 1 else None
            found = [j for j in range(m.order, t) if ids[j - m.order : j] == last]
            mean = torch.stack([features[j] for j in found]).mean(0) if found else torch.zeros_like(u)
            y = m.followers.weight @ mean + m.followers.bias + m.present.weight @ u + m.present.bias
            out.append(y)
        rows.append(torch.stack(out))
    return torch.stack(rows)
