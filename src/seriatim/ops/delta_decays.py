r"""What a chunk of :mod:`seriatim.ops.delta_scan` needs to know of its decays, and the gradient of it, by hand.

With d(j, i) the decay from after token j to token i, a chunk of C tokens asks for the scores q_i d(j, i) k_j and
k_i d(j, i) k_j, for queries and keys faded from the chunk's start, and for keys faded to its end. Every decay is the
exponential of a sum of the log decays that it spans, never a quotient of two, and every gradient in a log decay is a
sum over the scores that span it, never a difference of two: any log decay is right, -inf included.

Dimensions: N chunks of all batches and heads, C tokens of a chunk, K key dim, D = 1 for a decay per head, else K.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Faded", "fade", "fade_gradients"]


class Faded(NamedTuple):
    """A chunk's scores, queries and keys with the decays in them; or the gradients in these."""

    reads: Tensor  # (N, C, C), q_i d(j, i) k_j for j <= i
    overlaps: Tensor  # (N, C, C), k_i d(j, i) k_j for j < i
    q_before: Tensor  # (N, C, K), q_i faded from the chunk's start
    k_before: Tensor  # (N, C, K)
    k_after: Tensor  # (N, C, K), k_j faded to the chunk's end
    total: Tensor  # (N, D, 1), the decay over the chunk; as a gradient (N, K, 1)


def fade(q: Tensor, k: Tensor, log_decay: Tensor) -> Faded:
    """For q, k (N, C, K) and log_decay (N, C, D). With D = K, C must be a power of two."""
    if log_decay.size(-1) == 1:
        decay, before, after = _per_head(log_decay)
        reads, overlaps = (q @ k.mT) * decay.tril(), (k @ k.mT) * decay.tril(-1)
    else:
        (reads, overlaps), before, after = _per_key(q, k, log_decay)
    begin = before.exp()
    return Faded(reads, overlaps, q * begin, k * begin, k * after.exp(), begin[:, -1:].mT)


def fade_gradients(q: Tensor, k: Tensor, log_decay: Tensor, grads: Faded) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients in q, k and log_decay of what `fade` returns. grads.reads and .overlaps count where fade's do."""
    scores = torch.stack([grads.reads.tril(), grads.overlaps.tril(-1)])
    if log_decay.size(-1) == 1:
        grad_q, grad_k, grad_decay, before, after = _per_head_gradients(q, k, log_decay, scores)
    else:
        grad_q, grad_k, grad_decay, before, after = _per_key_gradients(q, k, log_decay, scores)
    begin = before.exp()
    new_q, new_k = begin * grads.q_before, begin * grads.k_before
    last_k = after.exp() * grads.k_after
    grad_total = grads.total.mT * begin[:, -1:]
    along = torch.stack([q * new_q + k * new_k, k * last_k])
    if log_decay.size(-1) == 1:
        along, grad_total = along.sum(-1, keepdim=True), grad_total.sum(-1, keepdim=True)
    return grad_q + new_q, grad_k + new_k + last_k, grad_decay + _spread(*along) + grad_total


def _spread(grad_before: Tensor, grad_after: Tensor) -> Tensor:
    """The gradients in the terms x_t of the sums over x_1 to x_i, and of those over x_{i+1} to the last."""
    later = grad_before.flip(-2).cumsum(-2).flip(-2)
    return later + F.pad(grad_after, (0, 0, 1, 0))[..., :-1, :].cumsum(-2)


def _per_head(log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d(j, i) (N, C, C), and the log decays from the chunk's start to each token and from each to its end (N, C, 1).

    The sum over j + 1 to i is a running sum down column j. Above the diagonal it is empty: d is 1 there.
    """
    between = log_decay.expand(-1, -1, log_decay.size(1)).tril(-1).cumsum(1)
    return between.exp(), log_decay.cumsum(1), between[:, -1:].mT


def _per_head_gradients(
    q: Tensor, k: Tensor, log_decay: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in q, k and log_decay of the scores (2, N, C, C), and what `_per_head` returns beside them."""
    decay, before, after = _per_head(log_decay)
    reads, overlaps = scores * decay
    spans = reads * (q @ k.mT) + overlaps * (k @ k.mT)
    # What token t fades: the scores of the tokens i >= t with the tokens j < t.
    grad_decay = spans.tril(-1).flip(1).cumsum(1).flip(1).tril(-1).sum(2, keepdim=True)
    return reads @ k, reads.mT @ q + (overlaps + overlaps.mT) @ k, grad_decay, before, after


def _levels(log_decay: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For blocks of 1, 2, 4, ..., C tokens: the log decays from the start of its block to each token, and from each to
    its end, (N, blocks, tokens of a block, K)."""
    before = log_decay.unsqueeze(2)
    after = torch.zeros_like(before)
    yield before, after
    while before.size(1) > 1:
        (left, right), (left_after, right_after) = _pairs(before), _pairs(after)
        before = torch.cat([left, right + left[:, :, -1:]], 2)
        after = torch.cat([left_after + right[:, :, -1:], right_after], 2)
        yield before, after


def _pairs(x: Tensor) -> tuple[Tensor, ...]:
    """(N, blocks, ...) -> the left and the right blocks of each pair."""
    return x.unflatten(1, (x.size(1) // 2, 2)).unbind(2)


def _blocks(x: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """(N, C, K) -> the left and the right blocks of each pair, in the blocks of `like` (N, blocks, tokens, K)."""
    return _pairs(x.unflatten(1, like.shape[1:3]))


def _per_key(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (2, N, C, C) of queries and of keys, and the log decays from the chunk's start and to its end (N, C, K).

    Neighbouring blocks are joined, from single tokens up to the chunk. The scores of a right block with its left
    neighbour are one product, because the decay between them splits at their border: from there to i, and from j to
    there. Both are sums over tokens of one block, so neither exponent is above 0 where no log decay is.
    """
    single = (q * k).sum(-1)
    scores = torch.stack([single, torch.zeros_like(single)])[..., None, None]
    for before, after in _levels(log_decay):
        if before.size(1) == 1:
            return scores.squeeze(2), before.squeeze(1), after.squeeze(1)
        readers, written, _, _ = _faded_pair(q, k, before, after)
        left, right = scores.unflatten(2, (-1, 2)).unbind(3)
        upper = F.pad(left, (0, left.size(-1)))
        scores = torch.cat([upper, torch.cat([readers @ written.mT, right], -1)], -2)
    raise AssertionError("the last level has one block")


def _per_key_gradients(
    q: Tensor, k: Tensor, log_decay: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in q, k and log_decay of the scores (2, N, C, C), and what `_per_key` returns beside them."""
    single = scores[0].diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    grad_q, grad_k, grad_decay = single * k, single * q, torch.zeros_like(k)
    for before, after in _levels(log_decay):
        if before.size(1) == 1:
            return grad_q, grad_k, grad_decay, before.squeeze(1), after.squeeze(1)
        readers, written, fading, rising = _faded_pair(q, k, before, after)
        cross = _below_the_diagonal(scores, before.size(2))
        to_q, to_k = cross @ written
        to_left = (cross.mT @ readers).sum(0)
        along_right = readers[0] * to_q + readers[1] * to_k
        none = torch.zeros_like(to_left)
        grad_q = grad_q + _joined(none, to_q * fading)
        grad_k = grad_k + _joined(to_left * rising, to_k * fading)
        grad_decay = grad_decay + _joined(_spread(none, to_left * written), _spread(along_right, none))
    raise AssertionError("the last level has one block")


def _faded_pair(q: Tensor, k: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys of the right blocks faded from their start, (2, N, pairs, tokens, K), keys of the left blocks
    faded to their end, (N, pairs, tokens, K), and the two decays."""
    fading, rising = _pairs(before)[1].exp(), _pairs(after)[0].exp()
    left, right = _blocks(k, before)
    return torch.stack([_blocks(q, before)[1], right]) * fading, left * rising, fading, rising


def _below_the_diagonal(scores: Tensor, tokens: int) -> Tensor:
    """(2, N, C, C) -> the blocks of right with left neighbours, (2, N, pairs, tokens, tokens)."""
    blocks = scores.unflatten(3, (-1, 2, tokens)).unflatten(2, (-1, 2, tokens))
    return blocks[:, :, :, 1, :, :, 0].diagonal(dim1=2, dim2=4).movedim(-1, 2)


def _joined(left: Tensor, right: Tensor) -> Tensor:
    """Left and right blocks (N, pairs, tokens, K) -> (N, C, K)."""
    return torch.stack([left, right], 2).flatten(1, 3)
