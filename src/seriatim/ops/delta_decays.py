r"""What a chunk of :mod:`seriatim.ops.delta_scan` needs to know of its decays, and the gradient of it, by hand.

Each token has W writers w, whose outer products it adds to the memory, and two readers: the query q that reads what the
token leaves, and r that reads what it finds, before or after it fades that. With d(j, i) the decay from after token j
to token i, a chunk of C tokens asks for the scores of readers with writers, q_i d(j, i) w_j and so on, for readers
faded from the chunk's start, and for writers faded to its end. Every decay is the exponential of a sum of the log
decays that it spans, never a quotient of two, and every gradient in a log decay is a sum over the scores that span it,
never a difference of two: any log decay is right, -inf included.

Dimensions: N chunks of all batches and heads, C tokens of a chunk, K key dim, W writers, D = 1 for a decay per head,
else K.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Faded", "fade", "fade_gradients"]


class Faded(NamedTuple):
    """A chunk's scores, readers and writers with the decays in them; or the gradients in these."""

    reads: Tensor  # (N, C, W C), q_i d(j, i) w_j for j <= i
    overlaps: Tensor  # (N, C, W C), what r_i reads of w_j for j < i
    q_before: Tensor  # (N, C, K), q_i faded from the chunk's start
    r_before: Tensor  # (N, C, K)
    after: Tensor  # (N, W C, K), w_j faded to the chunk's end
    total: Tensor  # (N, D, 1), the decay over the chunk; as a gradient (N, K, 1)


def fade(q: Tensor, r: Tensor, writers: Tensor, log_decay: Tensor, late: bool) -> Faded:
    """For q, r (N, C, K), writers (W, N, C, K) and log_decay (N, C, D). With D = K, C must be a power of two.

    late: r_i reads after the decay of its token, else before it.
    """
    per_head = log_decay.size(-1) == 1
    scores, before, after = (_per_head if per_head else _per_key)(_readers(q, r, late), writers, log_decay)
    reads, overlaps = scores.tril()
    begin, r_begin = _begin(before, late)
    return Faded(
        _side_by_side(reads),
        _side_by_side(overlaps.tril(-1) if late else _down(overlaps)),
        q * begin,
        r * r_begin,
        torch.cat((writers * after.exp()).unbind(), 1),
        begin[:, -1:].mT,
    )


def fade_gradients(
    q: Tensor, r: Tensor, writers: Tensor, log_decay: Tensor, late: bool, grads: Faded
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients in q, r, writers and log_decay of what `fade` returns. Scores of grads count where fade's do."""
    of_reads, of_overlaps = (torch.stack(z.chunk(len(writers), -1)) for z in (grads.reads, grads.overlaps))
    scores = torch.stack([of_reads, of_overlaps.tril(-1) if late else _up(of_overlaps)]).tril()
    per_head, readers = log_decay.size(-1) == 1, _readers(q, r, late)
    run = _per_head_gradients if per_head else _per_key_gradients
    (grad_q, grad_r), grad_writers, grad_decay, before, after = run(readers, writers, log_decay, scores)
    begin, r_begin = _begin(before, late)
    new_q, new_r = begin * grads.q_before, r_begin * grads.r_before
    last = after.exp() * torch.stack(grads.after.chunk(len(writers), 1))
    grad_total = grads.total.mT * begin[:, -1:]
    along = torch.stack([q * new_q + (r * new_r if late else _up(r * new_r)), (writers * last).sum(0)])
    if per_head:
        along, grad_total = along.sum(-1, keepdim=True), grad_total.sum(-1, keepdim=True)
    grad_r = (grad_r if late else _down(grad_r)) + new_r
    return grad_q + new_q, grad_r, grad_writers + last, grad_decay + _spread(*along) + grad_total


def _readers(q: Tensor, r: Tensor, late: bool) -> Tensor:
    """(2, N, C, K). What is read before the decay of a token is read after all that the token before it does."""
    return torch.stack([q, r if late else _up(r)])


def _begin(before: Tensor, late: bool) -> tuple[Tensor, Tensor]:
    """The decays from the chunk's start to what q_i reads, and to what r_i reads."""
    begin = before.exp()
    return begin, begin if late else F.pad(begin, (0, 0, 1, -1), value=1.0)


def _up(x: Tensor) -> Tensor:
    """Each row (..., C, F) in the place of the one before it; 0 in the last."""
    return F.pad(x, (0, 0, -1, 1))


def _down(x: Tensor) -> Tensor:
    """Each row (..., C, F) in the place of the one after it; 0 in the first."""
    return F.pad(x, (0, 0, 1, -1))


def _side_by_side(scores: Tensor) -> Tensor:
    """(W, N, C, C) -> (N, C, W C)."""
    return torch.cat(scores.unbind(), -1)


def _spread(grad_before: Tensor, grad_after: Tensor) -> Tensor:
    """The gradients in the terms x_t of the sums over x_1 to x_i, and of those over x_{i+1} to the last."""
    later = grad_before.flip(-2).cumsum(-2).flip(-2)
    return later + F.pad(grad_after, (0, 0, 1, 0))[..., :-1, :].cumsum(-2)


def _per_head(readers: Tensor, writers: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (2, W, N, C, C), right on and below the diagonal, and the log decays from the chunk's start to each token
    and from each to its end (N, C, 1)."""
    decay, before, after = _between(log_decay)
    return _products(readers, writers) * decay, before, after


def _between(log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """d(j, i) (N, C, C), and the log decays from the chunk's start to each token and from each to its end (N, C, 1).

    The sum over j + 1 to i is a running sum down column j. Above the diagonal it is empty: d is 1 there.
    """
    between = log_decay.expand(-1, -1, log_decay.size(1)).tril(-1).cumsum(1)
    return between.exp(), log_decay.cumsum(1), between[:, -1:].mT


def _products(readers: Tensor, writers: Tensor) -> Tensor:
    """Of all readers (2, ..., C, K) with all writers (W, ..., C, K): (2, W, ..., C, C)."""
    return readers.unsqueeze(1) @ writers.mT


def _per_head_gradients(
    readers: Tensor, writers: Tensor, log_decay: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in readers, writers and log_decay of the scores (2, W, N, C, C), and what `_per_head` returns
    beside them."""
    decay, before, after = _between(log_decay)
    scores = scores * decay
    spans = (scores * _products(readers, writers)).sum((0, 1))
    # What token t fades: the scores of the tokens i >= t with the tokens j < t.
    grad_decay = spans.tril(-1).flip(1).cumsum(1).flip(1).tril(-1).sum(2, keepdim=True)
    return *_product_gradients(readers, writers, scores), grad_decay, before, after


def _product_gradients(readers: Tensor, writers: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients in readers and writers of their products."""
    return (scores @ writers).sum(1), (scores.mT @ readers.unsqueeze(1)).sum(0)


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
    """(..., N, C, K) -> the left and the right blocks of each pair, in the blocks of `like` (N, blocks, tokens, K)."""
    return x.unflatten(-2, (like.size(1) // 2, 2, like.size(2))).unbind(-3)


def _per_key(readers: Tensor, writers: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (2, W, N, C, C), and the log decays from the chunk's start and to its end (N, C, K).

    Neighbouring blocks are joined, from single tokens up to the chunk. The scores of a right block with its left
    neighbour are one product, because the decay between them splits at their border: from there to i, and from j to
    there. Both are sums over tokens of one block, so neither exponent is above 0 where no log decay is.
    """
    scores = (readers.unsqueeze(1) * writers).sum(-1)[..., None, None]
    for before, after in _levels(log_decay):
        if before.size(1) == 1:
            return scores.squeeze(3), before.squeeze(1), after.squeeze(1)
        reading, written, _, _ = _faded_pair(readers, writers, before, after)
        left, right = scores.unflatten(3, (-1, 2)).unbind(4)
        upper = F.pad(left, (0, left.size(-1)))
        scores = torch.cat([upper, torch.cat([_products(reading, written), right], -1)], -2)
    raise AssertionError("the last level has one block")


def _per_key_gradients(
    readers: Tensor, writers: Tensor, log_decay: Tensor, scores: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients in readers, writers and log_decay of the scores (2, W, N, C, C), and what `_per_key` returns beside
    them."""
    single = scores.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    grad_readers, grad_writers = (single * writers).sum(1), (single * readers.unsqueeze(1)).sum(0)
    grad_decay = torch.zeros_like(log_decay)
    for before, after in _levels(log_decay):
        if before.size(1) == 1:
            return grad_readers, grad_writers, grad_decay, before.squeeze(1), after.squeeze(1)
        reading, written, fading, rising = _faded_pair(readers, writers, before, after)
        to_right, to_left = _product_gradients(reading, written, _below_the_diagonal(scores, before.size(2)))
        grad_readers = grad_readers + _joined(torch.zeros_like(to_right), to_right * fading)
        grad_writers = grad_writers + _joined(to_left * rising, torch.zeros_like(to_left))
        along_right, along_left = (reading * to_right).sum(0), (written * to_left).sum(0)
        none = torch.zeros_like(along_left)
        grad_decay = grad_decay + _joined(_spread(none, along_left), _spread(along_right, none))
    raise AssertionError("the last level has one block")


def _faded_pair(
    readers: Tensor, writers: Tensor, before: Tensor, after: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Readers of the right blocks faded from their start, (2, N, pairs, tokens, K), writers of the left blocks faded to
    their end, (W, N, pairs, tokens, K), and the two decays."""
    fading, rising = _pairs(before)[1].exp(), _pairs(after)[0].exp()
    return _blocks(readers, before)[1] * fading, _blocks(writers, before)[0] * rising, fading, rising


def _below_the_diagonal(scores: Tensor, tokens: int) -> Tensor:
    """(2, W, N, C, C) -> the blocks of right with left neighbours, (2, W, N, pairs, tokens, tokens)."""
    blocks = scores.unflatten(4, (-1, 2, tokens)).unflatten(3, (-1, 2, tokens))
    return blocks[:, :, :, :, 1, :, :, 0].diagonal(dim1=3, dim2=5).movedim(-1, 3)


def _joined(left: Tensor, right: Tensor) -> Tensor:
    """Left and right blocks (..., pairs, tokens, K) -> (..., C, K)."""
    return torch.stack([left, right], -3).flatten(-4, -2)
