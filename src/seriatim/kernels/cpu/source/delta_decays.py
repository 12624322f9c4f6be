"""What decays do to a chunk of the delta rule: per head, per key feature, or nothing.

With d(j, i) the decay from after token j to token i: scores (2 C, C) of keys k_i d(j, i) k_j for j < i, and of
queries q_i d(j, i) k_j for j <= i; `first` (2 C, K), keys and queries faded from the start; `last` (C, K), faded to
its end; `total` (K), the decay over the chunk. Two writers have scores and `last` each, and what then reads in the
place of the keys does so before the decay of its token: r_i d(j, i - 1) w_j. A decay is the exponential of the sum of
the log decays that it spans, or, per key feature, a product of their exponentials: never a quotient.

chunk.decays is (C, K) per key feature. Per head it is rows of C: log decays, decays from the start, decays to the end.
"""

import numpy as np

from seriatim.kernels.cpu.source.chunks import fade, running_sum
from seriatim.kernels.cpu.source.delta_layout import CHUNK
from seriatim.kernels.cpu.source.delta_pieces import REPLACE, C, clear, copy_numbers
from seriatim.kernels.cpu.source.functions import exp
from seriatim.kernels.cpu.source.lanes import every, lanes, load, store, sum_of
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.lines import fill
from seriatim.kernels.cpu.source.simd import WIDTH, multiply, transpose

__all__ = ["decays_after", "decays_before", "fade_none", "fade_per_head", "fade_per_key", "mask_scores", "plain_scores"]

ONE, STEP = np.float32(1), np.int64(1)


@function
def plain_scores(chunk, K, transposed):
    """Scores without decays. transposed: room for the keys as (K, C)."""
    transpose(C, K, chunk.pair, K, transposed, C)
    multiply(2 * C, C, K, chunk.pair, K, STEP, transposed, C, chunk.scores, C, REPLACE)


@function
def mask_scores(scores, between):
    """scores *= between (C, C); with later tokens, and of a key with itself, they are 0."""
    half = 4 * CHUNK * CHUNK
    for i in range(CHUNK):
        for j in range(0, CHUNK, WIDTH):
            of_key = scores + 4 * (i * CHUNK + j)
            decay = load(between + 4 * (i * CHUNK + j), lanes(WIDTH))
            store(load(of_key, lanes(i - j)) * decay, of_key, lanes(WIDTH))
            store(load(of_key + half, lanes(i - j + 1)) * decay, of_key + half, lanes(WIDTH))


@function
def fade_none(chunk):
    """The scores of a chunk in which nothing fades, from those that have no decays."""
    fill(vector(chunk.between, C * C), ONE)
    fill(vector(decays_before(chunk), 2 * C), ONE)
    mask_scores(chunk.scores, chunk.between)


@function
def fade_per_head(chunk, K):
    """The scores of a chunk from those that have no decays, `total`, and the decays from its start and to its end."""
    fill(vector(chunk.between, C * C), ONE)
    before, after = decays_before(chunk), decays_after(chunk)
    fill(vector(chunk.total, K), exp(running_sum(C, chunk.decays, before)))
    fade(C, chunk.decays, after, chunk.between, C, ONE)
    mask_scores(chunk.scores, chunk.between)
    both = vector(before, 2 * C)
    for i in range(both.size):
        both[i] = exp(both[i])


@function
def decays_before(chunk):
    """The decays per head from the chunk's start to each token."""
    return chunk.decays + 4 * CHUNK


@function
def decays_after(chunk):
    """The decays per head from each token to the chunk's end."""
    return chunk.decays + 8 * CHUNK


@function
def fade_per_key(chunk, work, tokens):
    """All of it but `total`, which is known, from decays that are 1 behind so many tokens."""
    K, late, half = work.K, work.W == 1, 4 * CHUNK * work.K
    clear(chunk.scores, 2 * work.W * C * C)
    copy_numbers(chunk.last, chunk.writers, work.W * C * K)
    for writer in range(work.W):
        for j in range(CHUNK):
            for column in range(0, K, 4 * WIDTH):
                _send(chunk, writer, j, tokens, column, K, late)
    for column in range(0, K, WIDTH):
        factor, some = every(ONE), lanes(WIDTH)
        for i in range(CHUNK):
            at = 4 * (i * K + column)
            before = factor
            factor = factor * load(chunk.decays + at, some)
            store(load(chunk.pair + at, some) * (factor if late else before), chunk.first + at, some)
            store(load(chunk.pair + half + at, some) * factor, chunk.first + half + at, some)


@function
def _send(chunk, writer, j, tokens, column, K, late):
    """Takes what token j writes, which lies in `last`, to the chunk's end, and adds its products with what it meets on
    the way to the scores: 4 vectors of features, from `column` on. late: keys read behind the decay of their token."""
    some0, some1 = lanes(K - column), lanes(K - column - WIDTH)
    some2, some3 = lanes(K - column - 2 * WIDTH), lanes(K - column - 3 * WIDTH)
    step, half, score = 4 * WIDTH, 4 * CHUNK * K, vector(chunk.scores + 8 * writer * CHUNK * CHUNK, 2 * C * C)
    end = chunk.last + 4 * ((writer * CHUNK + j) * K + column)
    w0, w1 = load(end, some0), load(end + step, some1)
    w2, w3 = load(end + 2 * step, some2), load(end + 3 * step, some3)
    z = chunk.pair + half + 4 * (j * K + column)
    total = load(z, some0) * w0 + load(z + step, some1) * w1
    total = total + (load(z + 2 * step, some2) * w2 + load(z + 3 * step, some3) * w3)
    score[(CHUNK + j) * CHUNK + j] += sum_of(total)
    for i in range(j + 1, tokens):
        z = chunk.pair + 4 * (i * K + column)
        k0, k1, k2, k3 = load(z, some0), load(z + step, some1), load(z + 2 * step, some2), load(z + 3 * step, some3)
        if not late:
            total = k0 * w0 + k1 * w1
            score[i * CHUNK + j] += sum_of(total + (k2 * w2 + k3 * w3))
        z = chunk.decays + 4 * (i * K + column)
        w0, w1 = w0 * load(z, some0), w1 * load(z + step, some1)
        w2, w3 = w2 * load(z + 2 * step, some2), w3 * load(z + 3 * step, some3)
        if late:
            total = k0 * w0 + k1 * w1
            score[i * CHUNK + j] += sum_of(total + (k2 * w2 + k3 * w3))
        z = chunk.pair + half + 4 * (i * K + column)
        total = load(z, some0) * w0 + load(z + step, some1) * w1
        total = total + (load(z + 2 * step, some2) * w2 + load(z + 3 * step, some3) * w3)
        score[(CHUNK + i) * CHUNK + j] += sum_of(total)
    store(w0, end, some0)
    store(w1, end + step, some1)
    store(w2, end + 2 * step, some2)
    store(w3, end + 3 * step, some3)
