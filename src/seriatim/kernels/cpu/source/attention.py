"""Kernels of attention to the tokens of the same document up to `window` of them, and to carried ones.

A block of queries goes through the keys it sees a block at a time, the last first, as FlashAttention does
(arXiv:2205.14135). Of the T x T weights nothing is kept: the backward pass computes them again from every query's
largest score and the sum of its weights relative to that, sums (B, H, 2, T).

With the weights P = exp(S - largest) / sum, the scores' gradient is P (dO V^T - delta), delta = dO . O of every query.

Dimensions: B batch, T time, H heads, G key-value heads, K key dim, V value dim, C slots of what is carried. Slot c is
seen by the queries before token until[b, c] of the same document.
"""

import numpy as np
from numba import types

from seriatim.kernels.cpu.source.attention_layout import QUERIES
from seriatim.kernels.cpu.source.bands import LINE, add_to_keys, add_to_queries, scores, turned
from seriatim.kernels.cpu.source.functions import exp
from seriatim.kernels.cpu.source.language import (
    Address,
    Bools2,
    Floats4,
    Floats5,
    Index,
    Ints1,
    Real,
    address,
    function,
    kernel,
    line,
    vector,
)
from seriatim.kernels.cpu.source.lines import copy, fill
from seriatim.kernels.cpu.source.visible import (
    clear_around,
    first_key,
    hide,
    length,
    slots_seen,
    tokens_seen,
    vectors,
)

__all__ = ["backward", "forward"]

Ints2 = types.Array(types.int64, 2, "A")
ZERO, ONE = np.float32(0), np.float32(1)
NOTHING = np.float32(-np.inf)
EVER = 1 << 40  # a window that hides nothing


@kernel
def forward(
    item: Index,
    scratch: Address,
    q: Floats4,
    k: Floats4,
    v: Floats4,
    carried_keys: Floats4,
    carried_values: Floats4,
    until: Ints2,
    reset: Bools2,
    lengths: Ints1,
    window: Index,
    scale: Real,
    keys: Index,
    out: Floats4,
    sums: Floats4,
):
    """out (B, T, H, V) and sums. An item is a block of queries of one head. scratch: `forward_size`."""
    time, heads = q.shape[1], q.shape[2]
    blocks = (time + QUERIES - 1) // QUERIES
    b, h, t = item // blocks // heads, item // blocks % heads, (blocks - 1 - item % blocks) * QUERIES
    g, rows = h // (heads // k.shape[2]), min(QUERIES, length(lengths, b, time) - t)
    for i in range(t, min(time, t + QUERIES)):
        fill(line(out, b, i, h), ZERO)
    if rows <= 0:
        return
    inner = q.shape[3]
    queries, s, bounds, lines = _rooms(scratch, inner, keys)
    turned(rows, inner, address(q, b, t, h), q.strides[1] // 4, queries, scale)
    fill(vector(lines, QUERIES), NOTHING)
    fill(vector(lines + LINE, QUERIES), ZERO)
    first, stop, end = first_key(reset, b, t, window), t + rows, t + rows
    while stop > first:
        begin = max(first, stop - keys)
        end = tokens_seen(bounds, keys, reset, b, t, rows, begin, stop - begin, window, end)
        _attend(stop - begin, rows, begin - t, window, k, v, b, begin, g, queries, s, bounds, keys, lines, out, t, h)
        stop = begin
    slots = carried_keys.shape[1] if first == 0 and end > t else 0
    for n in range((slots + keys - 1) // keys):
        begin = n * keys
        count = min(keys, slots - begin)
        if slots_seen(bounds, keys, until, b, t, begin, count, end):
            _attend(count, rows, -count, EVER, carried_keys, carried_values, b, begin, g, queries, s, bounds, keys,
                    lines, out, t, h)  # fmt: skip
    largest, total = vector(lines, rows), vector(lines + LINE, rows)
    copy(vector(address(sums, b, h, 0, t), rows), largest)
    copy(vector(address(sums, b, h, 1, t), rows), total)
    for r in range(rows):
        row, share = line(out, b, t + r, h), ONE / total[r]
        for d in range(row.size):
            row[d] *= share


@function
def _rooms(scratch, inner, keys):
    """Where the queries, the scores, the bounds of what is seen and five lines of QUERIES numbers lie."""
    s = scratch + LINE * inner
    bounds = s + LINE * keys
    return scratch, s, bounds, bounds + 8 * keys


@function
def _attend(count, rows, offset, window, k, v, b, begin, g, queries, s, bounds, keys, lines, out, t, h):
    """Adds what `count` keys from `begin` on give to a block of queries, relative to the largest score so far.

    lines: the largest scores, the sums of weights, what to subtract from scores, what is left of the weights so far.
    """
    scores(count, rows, k.shape[3], offset, window, address(k, b, begin, g), k.strides[1] // 4, queries, s)
    _rise(count, s, bounds, keys, lines)
    _weigh(count, s, bounds, keys, lines)
    fade = vector(lines + 3 * LINE, QUERIES)
    for r in range(rows):
        row, factor = line(out, b, t + r, h), fade[r]
        for d in range(row.size):
            row[d] *= factor
    add_to_queries(count, rows, v.shape[3], offset, window, s, address(v, b, begin, g), v.strides[1] // 4,
                   address(out, b, t, h), out.strides[1] // 4)  # fmt: skip


@function
def _rise(count, s, bounds, keys, lines):
    """Raises the largest scores to those in S."""
    largest, shift = vector(lines, QUERIES), vector(lines + 2 * LINE, QUERIES)
    fade = vector(lines + 3 * LINE, QUERIES)
    copy(shift, largest)
    for i in range(count):
        hide(s, bounds, keys, i)
        _, _, begin, end = vectors(bounds, keys, i)
        row, top = vector(s + LINE * i + 4 * begin, end - begin), vector(lines + 2 * LINE + 4 * begin, end - begin)
        for r in range(end - begin):
            top[r] = row[r] if row[r] > top[r] else top[r]
    for r in range(QUERIES):
        before, top = largest[r], shift[r]
        base = top if top > NOTHING else ZERO  # never (-inf) - (-inf)
        largest[r], shift[r], fade[r] = top, base, exp(before - base)


@function
def _weigh(count, s, bounds, keys, lines):
    """Makes weights of the scores in S, 0 where not seen, and adds them up."""
    total, fade = vector(lines + LINE, QUERIES), vector(lines + 3 * LINE, QUERIES)
    found = vector(lines + 4 * LINE, QUERIES)
    fill(found, ZERO)
    for i in range(count):
        begin, n = clear_around(s, bounds, keys, i)
        row, more = vector(s + LINE * i + 4 * begin, n), vector(lines + 4 * LINE + 4 * begin, n)
        shift = vector(lines + 2 * LINE + 4 * begin, n)
        for r in range(n):
            weight = exp(row[r] - shift[r])
            row[r] = weight
            more[r] += weight
    for r in range(QUERIES):
        total[r] = total[r] * fade[r] + found[r]


@kernel
def backward(
    item: Index,
    scratch: Address,
    grad_out: Floats4,
    out: Floats4,
    sums: Floats4,
    q: Floats4,
    k: Floats4,
    v: Floats4,
    carried_keys: Floats4,
    carried_values: Floats4,
    until: Ints2,
    reset: Bools2,
    lengths: Ints1,
    window: Index,
    scale: Real,
    keys: Index,
    grad_q: Floats4,
    grad_k: Floats5,
    grad_v: Floats5,
    grad_carried_keys: Floats5,
    grad_carried_values: Floats5,
):
    """The gradients; those of keys and values in as many parts as grad_k has, to be added up.

    An item is one head of keys and values, and for every part another share of the queries. scratch: `backward_size`.
    """
    time, groups, inner, parts = q.shape[1], k.shape[2], q.shape[3], grad_k.shape[0]
    part, b, g, shared = item % parts, item // parts // groups, item // parts % groups, q.shape[2] // groups
    queries, s, bounds, lines = _rooms(scratch, inner, keys)
    turned_grads = lines + 5 * LINE
    slopes = turned_grads + LINE * v.shape[3]
    real = length(lengths, b, time)
    _clear(grad_k, part, b, g)
    _clear(grad_v, part, b, g)
    _clear(grad_carried_keys, part, b, g)
    _clear(grad_carried_values, part, b, g)
    blocks = shared * ((time + QUERIES - 1) // QUERIES)
    for n in range((blocks - part + parts - 1) // parts):
        block = part + n * parts
        h, t = g * shared + block % shared, block // shared * QUERIES
        for i in range(t, min(time, t + QUERIES)):
            fill(line(grad_q, b, i, h), ZERO)
        rows = min(QUERIES, real - t)
        if rows <= 0:
            continue
        turned(rows, inner, address(q, b, t, h), q.strides[1] // 4, queries, scale)
        turned(rows, v.shape[3], address(grad_out, b, t, h), grad_out.strides[1] // 4, turned_grads, ONE)
        _recall(rows, grad_out, out, sums, b, h, t, lines)
        first, stop, end = first_key(reset, b, t, window), t + rows, t + rows
        while stop > first:
            begin = max(first, stop - keys)
            end = tokens_seen(bounds, keys, reset, b, t, rows, begin, stop - begin, window, end)
            _differentiate(stop - begin, rows, begin - t, window, k, v, b, begin, g, queries, turned_grads, s, slopes,
                           bounds, keys, lines, scale, q, grad_out, t, h, grad_q, grad_k, grad_v, part)  # fmt: skip
            stop = begin
        slots = carried_keys.shape[1] if first == 0 and end > t else 0
        for m in range((slots + keys - 1) // keys):
            begin = m * keys
            count = min(keys, slots - begin)
            if slots_seen(bounds, keys, until, b, t, begin, count, end):
                _differentiate(count, rows, -count, EVER, carried_keys, carried_values, b, begin, g, queries,
                               turned_grads, s, slopes, bounds, keys, lines, scale, q, grad_out, t, h,
                               grad_q, grad_carried_keys, grad_carried_values, part)  # fmt: skip


@function
def _clear(gradient, part, b, g):
    """Makes the gradient of one head of keys or values 0."""
    for i in range(gradient.shape[2]):
        fill(line(gradient, part, b, i, g), ZERO)


@function
def _recall(rows, grad_out, out, sums, b, h, t, lines):
    """lines: of every query the largest score, 1 / the sum of its weights, and delta; 0 where there is no query."""
    largest, share, delta = vector(lines, QUERIES), vector(lines + LINE, QUERIES), vector(lines + 2 * LINE, QUERIES)
    fill(largest, ZERO)
    fill(share, ZERO)
    fill(delta, ZERO)
    copy(vector(lines, rows), vector(address(sums, b, h, 0, t), rows))
    found = vector(address(sums, b, h, 1, t), rows)
    for r in range(rows):
        share[r] = ONE / found[r]
        row, gradient, total = line(out, b, t + r, h), line(grad_out, b, t + r, h), ZERO
        for d in range(row.size):
            total += row[d] * gradient[d]
        delta[r] = total


@function
def _differentiate(count, rows, offset, window, k, v, b, begin, g, queries, turned_grads, s, slopes, bounds, keys,
                   lines, scale, q, grad_out, t, h, grad_q, grad_k, grad_v, part):  # fmt: skip
    """Adds what `count` keys from `begin` on and a block of queries give to each other's gradients."""
    inner, columns = k.shape[3], v.shape[3]
    where_k, k_row = address(k, b, begin, g), k.strides[1] // 4
    scores(count, rows, inner, offset, window, where_k, k_row, queries, s)
    scores(count, rows, columns, offset, window, address(v, b, begin, g), v.strides[1] // 4, turned_grads, slopes)
    for i in range(count):
        hide(s, bounds, keys, i)
        clear_around(slopes, bounds, keys, i)
        first, n = clear_around(s, bounds, keys, i)
        weight, slope = vector(s + LINE * i + 4 * first, n), vector(slopes + LINE * i + 4 * first, n)
        largest, share = vector(lines + 4 * first, n), vector(lines + LINE + 4 * first, n)
        delta = vector(lines + 2 * LINE + 4 * first, n)
        for r in range(n):
            weight[r] = exp(weight[r] - largest[r]) * share[r]
            slope[r] = weight[r] * (slope[r] - delta[r]) * scale if weight[r] != ZERO else ZERO
    where_q, q_row = address(q, b, t, h), q.strides[1] // 4
    where_g, g_row = address(grad_out, b, t, h), grad_out.strides[1] // 4
    add_to_keys(count, rows, columns, offset, window, s, where_g, g_row,
                address(grad_v, part, b, begin, g), grad_v.strides[2] // 4)  # fmt: skip
    add_to_keys(count, rows, inner, offset, window, slopes, where_q, q_row,
                address(grad_k, part, b, begin, g), grad_k.strides[2] // 4)  # fmt: skip
    add_to_queries(count, rows, inner, offset, window, slopes, where_k, k_row,
                   address(grad_q, b, t, h), grad_q.strides[1] // 4)  # fmt: skip
