"""Kernels of softmax_scan. A work item is one head of one row; it reads its tokens a chunk at a time.

Dimensions: B batch, T time, H heads, D value dim, N chunks of C tokens. The state is kept where a chunk begins, as D
weighted sums, the maximum and the total: kept (B, N, H, D + 2). The backward pass computes the rest once more.

With the maximum m_t, total c_t and mean o_t, k_t = e^(m_{t-1} - m_t), n_t = e^(s_t - m_t), and g_t the gradient of o_t,

P_t = g_t / c_t + k_{t+1} P_{t+1},     dv_t = n_t P_t,     a_t = (v_t - o_{t-1}) P_t,
R_{t-1} = k_t (R_t - a_t n_t / c_t),   ds_t = n_t (R_t + a_t k_t c_{t-1} / c_t).

R_t is the sum over j >= t of e^(m_t - m_j) g_j (o_t - o_j) / c_j: so no two nearly equal numbers are subtracted. Sums
over a chunk are added up apart from what came before it, since rounding grows with the terms of a sum; f_t is how much
of that is left at t.
"""

import numpy as np

from seriatim.kernels.cpu.source.functions import exp
from seriatim.kernels.cpu.source.language import (
    Address,
    Bools2,
    Floats2,
    Floats3,
    Floats4,
    Index,
    function,
    kernel,
    line,
    vector,
)
from seriatim.kernels.cpu.source.lines import copy, fill

__all__ = ["backward", "forward"]

ZERO, ONE = np.float32(0), np.float32(1)
NOTHING = np.float32(-np.inf)


@kernel
def forward(
    item: Index,
    scratch: Address,
    scores: Floats3,
    values: Floats4,
    maximum: Floats2,
    total: Floats2,
    weighted: Floats3,
    reset: Bools2,
    chunk: Index,
    out: Floats4,
    last_maximum: Floats2,
    last_total: Floats2,
    last_weighted: Floats3,
    kept: Floats4,
):
    """out (B, T, H, D), the last state, and the states kept. scratch: 6 * chunk + D."""
    time, heads, dim = scores.shape[1], scores.shape[2], values.shape[3]
    b, h = item // heads, item % heads
    fade, new, inverse, _, totals, left = _lines(scratch, chunk)
    carried, state = line(last_weighted, b, h), vector(scratch + 24 * chunk, dim)
    m, c = maximum[b, h], total[b, h]
    copy(carried, line(weighted, b, h))
    for n in range((time + chunk - 1) // chunk):
        begin = n * chunk
        count = min(chunk, time - begin)
        _keep(line(kept, b, n, h), carried, m, c)
        m = _factors(scratch, chunk, scores, reset, b, h, begin, count, m, c)
        c = totals[count - 1]
        fill(state, ZERO)
        for i in range(count):
            t = begin + i
            if _begins(reset, b, t):
                fill(state, ZERO)
                fill(carried, ZERO)
            _read(line(out, b, t, h), state, carried, line(values, b, t, h), fade[i], new[i], left[i], inverse[i])
        _join(carried, state, left[count - 1])
    last_maximum[b, h], last_total[b, h] = m, c


@kernel
def backward(
    item: Index,
    scratch: Address,
    grad_out: Floats4,
    grad_maximum: Floats2,
    grad_total: Floats2,
    grad_weighted: Floats3,
    scores: Floats3,
    values: Floats4,
    kept: Floats4,
    reset: Bools2,
    chunk: Index,
    grad_scores: Floats3,
    grad_values: Floats4,
    first_maximum: Floats2,
    first_total: Floats2,
    first_weighted: Floats3,
):
    """The gradients of scores, values and the state at the start (first_*). scratch: 6 * chunk + D * (chunk + 2)."""
    time, heads, dim = scores.shape[1], scores.shape[2], values.shape[3]
    b, h = item // heads, item % heads
    fade, new, inverse, _, total, _ = _lines(scratch, chunk)
    near, news = vector(scratch + 24 * chunk, dim), scratch + 24 * chunk + 8 * dim
    P, R = line(first_weighted, b, h), np.float64(grad_total[b, h])
    copy(P, line(grad_weighted, b, h))
    gauge, top = grad_maximum[b, h], NOTHING  # what the maximum at the end still has to pass on
    for n in range((time - 1) // chunk, -1, -1):
        begin, before = n * chunk, line(kept, b, n, h)
        count = min(chunk, time - begin)
        m = _factors(scratch, chunk, scores, reset, b, h, begin, count, before[dim], before[dim + 1])
        _read_again(scratch, chunk, values, reset, b, h, begin, count, before)
        if begin + count == time:
            top = m
            R += _dot(P, near) * inverse[count - 1]
            gauge = gauge - R * total[count - 1] if m > NOTHING else ZERO
        fill(near, ZERO)
        left = ONE
        for i in range(count - 1, -1, -1):
            t = begin + i
            gradient, told = line(grad_out, b, t, h), vector(news + 4 * dim * i, dim)
            a = _unread(line(grad_values, b, t, h), near, P, told, gradient, fade[i], new[i], left, inverse[i])
            a *= inverse[i]
            rest = fade[i] * (before[dim + 1] if i == 0 else total[i - 1])
            slope = new[i] * (R + (ZERO if _begins(reset, b, t) else a * rest))
            if scores[b, t, h] == top:
                slope += gauge
                gauge = ZERO
            grad_scores[b, t, h] = slope
            R = fade[i] * (R - a * new[i])
            left *= fade[i]
            if _begins(reset, b, t):
                fill(near, ZERO)
                fill(P, ZERO)
                R, top, gauge = 0.0, NOTHING, ZERO
        _join(P, near, left)
    before = line(kept, b, 0, h)
    c, forgotten = before[dim + 1], _begins(reset, b, 0)
    first_maximum[b, h] = ZERO if forgotten else R * c + gauge
    first_total[b, h] = ZERO if forgotten else R - _dot(P, before) * _inverse(c)


@function
def _begins(reset, b, t):
    """Whether a document begins at token t."""
    return reset.shape[0] > 0 and reset[b, t]


@function
def _lines(scratch, chunk):
    """Of every token of the chunk: k_t, n_t, 1 / c_t, m_t, c_t and f_t."""
    fade, new, inverse = vector(scratch, chunk), vector(scratch + 4 * chunk, chunk), vector(scratch + 8 * chunk, chunk)
    maximum, total = vector(scratch + 12 * chunk, chunk), vector(scratch + 16 * chunk, chunk)
    return fade, new, inverse, maximum, total, vector(scratch + 20 * chunk, chunk)


@function
def _factors(scratch, chunk, scores, reset, b, h, begin, count, m, c):
    """Writes what `_lines` names of `count` tokens from `begin`, after a state with m and c. The last m is returned."""
    fade, new, inverse, maximum, total, left = _lines(scratch, chunk)
    for i in range(count):
        m = NOTHING if _begins(reset, b, begin + i) else m
        fade[i], new[i] = m, scores[b, begin + i, h]
        m = new[i] if new[i] > m else m
        maximum[i] = m
    for i in range(count):
        top = maximum[i] if maximum[i] > NOTHING else ZERO  # never (-inf) - (-inf)
        fade[i] = exp(fade[i] - top)
        new[i] = exp(new[i] - top)
    found, still = ZERO, ONE
    for i in range(count):
        if _begins(reset, b, begin + i):
            found, still, c = ZERO, ZERO, ZERO
        found, still = found * fade[i] + new[i], still * fade[i]
        total[i], left[i] = found + still * c, still
    for i in range(count):
        inverse[i] = _inverse(total[i])
    return m


@function
def _inverse(c):
    """1 / c, and 0 where nothing was read."""
    return ONE / c if c != ZERO else ZERO


@function
def _keep(place, state, m, c):
    """Writes down a state."""
    dim = state.size
    for d in range(dim):
        place[d] = state[d]
    place[dim], place[dim + 1] = m, c


@function
def _read(out, state, carried, value, fade, new, left, inverse):
    """One token: the weighted sum, and the mean."""
    for d in range(out.size):
        weighted = state[d] * fade + new * value[d]
        state[d] = weighted
        out[d] = (weighted + left * carried[d]) * inverse


@function
def _read_again(scratch, chunk, values, reset, b, h, begin, count, before):
    """The weighted sums after the chunk, and behind them for each token what is new in its value, v_t - o_{t-1}."""
    fade, new, inverse, _, _, left = _lines(scratch, chunk)
    dim = values.shape[3]
    state, carried = vector(scratch + 24 * chunk, dim), vector(scratch + 24 * chunk + 4 * dim, dim)
    fill(state, ZERO)
    for d in range(dim):
        carried[d] = before[d]
    mean, still = _inverse(before[dim + 1]), ONE
    for i in range(count):
        if _begins(reset, b, begin + i):
            fill(state, ZERO)
            fill(carried, ZERO)
        value, told = line(values, b, begin + i, h), vector(scratch + 24 * chunk + 4 * dim * (i + 2), dim)
        k, n = fade[i], new[i]
        for d in range(dim):
            told[d] = value[d] - (state[d] + still * carried[d]) * mean
            state[d] = state[d] * k + n * value[d]
        mean, still = inverse[i], left[i]
    for d in range(dim):
        state[d] += still * carried[d]


@function
def _unread(row, near, P, told, gradient, fade, new, left, inverse):
    """One token backwards: P += gradient / c, row = n P, P *= k. told . P before the last is returned.

    P is near + left P, P itself that of the next chunk.
    """
    total = ZERO
    for d in range(row.size):
        close = near[d] + inverse * gradient[d]
        p = close + left * P[d]
        row[d] = new * p
        total += told[d] * p
        near[d] = fade * close
    return total


@function
def _join(carried, state, left):
    """carried = state + left carried."""
    for d in range(carried.size):
        carried[d] = state[d] + left * carried[d]


@function
def _dot(x, y):
    """The sum of x[i] y[i] over the length of x."""
    total = ZERO
    for d in range(x.size):
        total += x[d] * y[d]
    return total
