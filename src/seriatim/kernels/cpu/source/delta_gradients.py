"""The gradients of what decays do to a chunk of the delta rule: see :mod:`delta_decays`.

A gradient in a log decay is a sum over the products that it fades, never a difference of two: right for any log decay,
and exactly 0 where a decay is 0.
"""

import numpy as np

from seriatim.kernels.cpu.source.delta_decays import decays_after, decays_before, mask_scores
from seriatim.kernels.cpu.source.delta_layout import CHUNK
from seriatim.kernels.cpu.source.delta_pieces import C, clear
from seriatim.kernels.cpu.source.lanes import every, lanes, load, number, store, sum_of
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.simd import WIDTH

__all__ = ["gradients_none", "gradients_per_head", "gradients_per_key"]

ZERO, ONE = np.float32(0), np.float32(1)


@function
def gradients_none(chunk, grads, K):
    """grads.scores become those of k_i k_j and q_i k_j; grads.pair what keys and queries get beside these."""
    mask_scores(grads.scores, chunk.between)
    for i in range(CHUNK):
        _fade_pair(grads, K, i, ONE, ONE)


@function
def gradients_per_head(chunk, grads, K, sums):
    """The same; the first row of grads.logs gets the gradients in the log decays. sums: room for C numbers."""
    logs, half = vector(grads.logs, C), 4 * CHUNK * K
    _spans(chunk, grads, logs, sums)
    before, after = vector(decays_before(chunk), C), vector(decays_after(chunk), C)
    later, total = ZERO, vector(grads.total, K)
    for c in range(K):
        later += total[c]
    for t in range(CHUNK - 1, -1, -1):
        row = 4 * t * K
        seen = dot(K, chunk.pair + row, grads.first + row)
        later += before[t] * (seen + dot(K, chunk.pair + half + row, grads.first + half + row))
        logs[t] += later
    earlier = ZERO
    for t in range(CHUNK):
        logs[t] += earlier
        earlier += after[t] * dot(K, chunk.pair + 4 * t * K, grads.last + 4 * t * K)
    mask_scores(grads.scores, chunk.between)
    for i in range(CHUNK):
        _fade_pair(grads, K, i, before[i], after[i])


@function
def _fade_pair(grads, K, i, begin, end):
    """Row i of grads.pair from those of grads.first and grads.last, which it faded so much."""
    half = 4 * CHUNK * K
    for column in range(0, K, WIDTH):
        at, some = 4 * (i * K + column), lanes(WIDTH)
        store(load(grads.first + at, some) * begin + load(grads.last + at, some) * end, grads.pair + at, some)
        store(load(grads.first + half + at, some) * begin, grads.pair + half + at, some)


@function
def _spans(chunk, grads, logs, sums):
    """logs = what the scores say to the log decays: token t fades those of tokens i >= t with tokens j < t."""
    clear(sums, C)
    half = 4 * CHUNK * CHUNK
    for t in range(CHUNK - 1, -1, -1):
        total = ZERO
        for j in range(0, CHUNK, WIDTH):
            some, at = lanes(t - j), 4 * (t * CHUNK + j)
            both = load(chunk.scores + at, some) * load(grads.scores + at, some)
            both = both + load(chunk.scores + half + at, some) * load(grads.scores + half + at, some)
            both = both + load(sums + 4 * j, some)
            store(both, sums + 4 * j, some)
            total += sum_of(both)
        logs[t] = total


@function
def gradients_per_key(chunk, work, grads, tokens):
    """grads.pair and grads.writers get all that these get, grads.logs (C, K) the gradients in the log decays."""
    K, late, half, some = work.K, work.W == 1, 4 * CHUNK * work.K, lanes(WIDTH)
    if work.W > 1:
        clear(grads.writers, 2 * C * K)
    for column in range(0, K, WIDTH):
        later = load(grads.total + 4 * column, some)
        for t in range(CHUNK - 1, -1, -1):
            at = 4 * (t * K + column)
            of_key = load(chunk.first + at, some) * load(grads.first + at, some)
            later = later + load(chunk.first + half + at, some) * load(grads.first + half + at, some)
            store(later + of_key if late else later, grads.logs + at, some)
            later = later + of_key
        factor = every(ONE)
        for t in range(CHUNK):
            at = 4 * (t * K + column)
            before = factor
            factor = factor * load(chunk.decays + at, some)
            store(load(grads.first + at, some) * (factor if late else before), grads.pair + at, some)
            store(load(grads.first + half + at, some) * factor, grads.pair + half + at, some)
    for writer in range(work.W):
        for j in range(tokens):
            for column in range(0, K, 2 * WIDTH):
                _send(chunk, grads, writer, j, tokens, column, K, late)


@function
def _send(chunk, grads, writer, j, tokens, column, K, late):
    """Takes what token j writes through the chunk again, and the gradient in it back: 2 vectors of features, from
    `column` on."""
    some0, some1, step, half = lanes(K - column), lanes(K - column - WIDTH), 4 * WIDTH, 4 * CHUNK * K
    at, own = 4 * (j * K + column), 4 * ((writer * CHUNK + j) * K + column)
    w0, w1 = load(chunk.writers + own, some0), load(chunk.writers + own + step, some1)
    for i in range(j + 1, tokens):
        at = 4 * (i * K + column)
        store(w0, grads.chain + at - 4 * K, some0)
        store(w1, grads.chain + at - 4 * K + step, some1)
        w0, w1 = w0 * load(chunk.decays + at, some0), w1 * load(chunk.decays + at + step, some1)
    score = grads.scores + 4 * (2 * writer * CHUNK * CHUNK + j)
    g0, g1 = load(grads.last + own, some0), load(grads.last + own + step, some1)
    for i in range(tokens - 1, j, -1):
        at, of_key = 4 * (i * K + column), number(score + 4 * i * CHUNK)
        of_query = number(score + 4 * (CHUNK + i) * CHUNK)
        z = chunk.pair + at
        k0, k1 = load(z, some0) * of_key, load(z + step, some1) * of_key
        z += half
        g0, g1 = g0 + load(z, some0) * of_query, g1 + load(z + step, some1) * of_query
        if late:
            g0, g1 = g0 + k0, g1 + k1
            _accumulate(grads.pair + at, w0 * of_key, w1 * of_key, some0, some1)
        _accumulate(grads.logs + at, w0 * g0, w1 * g1, some0, some1)
        _accumulate(grads.pair + half + at, w0 * of_query, w1 * of_query, some0, some1)
        g0, g1 = g0 * load(chunk.decays + at, some0), g1 * load(chunk.decays + at + step, some1)
        w0, w1 = load(grads.chain + at - 4 * K, some0), load(grads.chain + at - 4 * K + step, some1)
        if not late:
            g0, g1 = g0 + k0, g1 + k1
            _accumulate(grads.pair + at, w0 * of_key, w1 * of_key, some0, some1)
    of_query, at = number(score + 4 * (CHUNK + j) * CHUNK), 4 * (j * K + column)
    z = chunk.pair + half + at
    g0, g1 = g0 + load(z, some0) * of_query, g1 + load(z + step, some1) * of_query
    _accumulate(grads.writers + own, g0, g1, some0, some1)
    _accumulate(grads.pair + half + at, w0 * of_query, w1 * of_query, some0, some1)


@function
def _accumulate(place, x0, x1, some0, some1):
    """Adds two vectors to what lies at a place."""
    store(load(place, some0) + x0, place, some0)
    store(load(place + 4 * WIDTH, some1) + x1, place + 4 * WIDTH, some1)


@function
def dot(count, x, y):
    """The sum of x y."""
    total = every(ZERO)
    for c in range(0, count, WIDTH):
        total = total + load(x + 4 * c, lanes(count - c)) * load(y + 4 * c, lanes(count - c))
    return sum_of(total)
