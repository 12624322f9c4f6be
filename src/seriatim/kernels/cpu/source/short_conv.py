"""Kernels of short_conv. A work item is some tokens of one row, some features wide.

Dimensions: B batch, T time, D features, W taps. Tokens are counted from the first of x; the state holds -W + 1 to -1.
"""

import numpy as np

from seriatim.kernels.cpu.source.language import (
    Address,
    Bools2,
    Floats1,
    Floats2,
    Floats3,
    Index,
    Ints1,
    address,
    function,
    kernel,
    vector,
)
from seriatim.kernels.cpu.source.lines import add, add_product, copy, fill
from seriatim.kernels.cpu.source.simd import transpose

__all__ = ["backward", "forward"]

ZERO = np.float32(0)
FEW = 64


@kernel
def forward(
    item: Index,
    scratch: Address,
    x: Floats3,
    weight: Floats2,
    bias: Floats1,
    state: Floats3,
    reset: Bools2,
    lengths: Ints1,
    tokens: Index,
    features: Index,
    y: Floats3,
    tail: Floats3,
):
    """y (B, T, D) and tail (B, W - 1, D). scratch: (W + 1) * features."""
    time, dim, taps = x.shape[1], x.shape[2], weight.shape[1]
    b, begin, first, width, _ = _part(item, time, dim, tokens, features)
    end, length = min(time, begin + tokens), _length(lengths, b, time)
    factors, start = scratch, scratch + 4 * taps * width
    transpose(width, taps, address(weight, first), weight.strides[0] // 4, factors, width)
    _begin(vector(start, width), bias, first)
    for t in range(begin, min(end, length)):
        seen = _seen(reset, state, b, t, taps)
        out = vector(address(y, b, t, first), width)
        if seen == taps and t + 1 >= taps:
            oldest = address(x, b, t + 1 - taps, first)
            _sum_of_taps(out, vector(start, width), taps, factors, oldest, x.strides[1])
        else:
            copy(out, vector(start, width))
            for age in range(seen):
                source = vector(_place(x, state, b, t - age, first, taps), width)
                add_product(out, vector(factors + 4 * width * (taps - 1 - age), width), source)
    for t in range(max(begin, length), end):
        fill(vector(address(y, b, t, first), width), ZERO)
    if begin == 0:
        _write_tail(tail, x, state, reset, b, length, first, width)


@kernel
def backward(
    item: Index,
    scratch: Address,
    grad_y: Floats3,
    grad_tail: Floats3,
    x: Floats3,
    weight: Floats2,
    state: Floats3,
    reset: Bools2,
    lengths: Ints1,
    tokens: Index,
    features: Index,
    grad_x: Floats3,
    grad_state: Floats3,
    sums: Floats3,
):
    """grad_x, grad_state, and what the item adds to the gradients of weight and bias: sums (B * parts of T, W + 1, D).

    scratch: (2 W + 1) * features.
    """
    time, dim, taps = x.shape[1], x.shape[2], weight.shape[1]
    b, begin, first, width, part = _part(item, time, dim, tokens, features)
    end, length = min(time, begin + tokens), _length(lengths, b, time)
    transpose(width, taps, address(weight, first), weight.strides[0] // 4, scratch, width)
    few = scratch + 4 * taps * width  # sums over FEW tokens, added up apart: rounding grows with the terms of a sum
    for row in range(taps + 1):
        fill(vector(address(sums, part, row, first), width), ZERO)
        fill(vector(few + 4 * row * width, width), ZERO)
    before = taps - 1 if begin == 0 and state.shape[0] > 0 else 0
    for t in range(begin - before, end):
        out = vector(_place(grad_x, grad_state, b, t, first, taps), width)
        fill(out, ZERO)
        if t < length:
            source = vector(_place(x, state, b, t, first, taps), width)
            stop = _reach(reset, b, t, taps, length)
            if stop > length:
                add(out, vector(address(grad_tail, b, t - length + taps - 1, first), width))
            if t >= 0:
                add(vector(few + 4 * taps * width, width), vector(address(grad_y, b, t, first), width))
            _back(out, source, grad_y, b, t, min(stop, length), first, taps, scratch, few)
        if (t - begin) % FEW == FEW - 1 or t == end - 1:
            for row in range(taps + 1):
                add(vector(address(sums, part, row, first), width), vector(few + 4 * row * width, width))
                fill(vector(few + 4 * row * width, width), ZERO)


@function
def _part(item, time, dim, tokens, features):
    """Of an item: the row of the batch, the first token, the first feature, how many features, and its row of sums."""
    across = (dim + features - 1) // features
    along = max(1, (time + tokens - 1) // tokens)
    part, first = item // across, item % across * features
    return part // along, part % along * tokens, first, min(features, dim - first), part


@function
def _length(lengths, b, time):
    """How many tokens of row b are real."""
    return lengths[b] if lengths.shape[0] > 0 else time


@function
def _place(x, state, b, t, first, taps):
    """Where token t lies, in x or in the state."""
    return address(x, b, t, first) if t >= 0 else address(state, b, t + taps - 1, first)


@function
def _begins(reset, b, t):
    """Whether a document begins at token t."""
    return t >= 0 and reset.shape[0] > 0 and reset[b, t]


@function
def _seen(reset, state, b, t, taps):
    """How many tokens up to t a tap of output t reaches: those of its document, and no more than there are."""
    most = taps if state.shape[0] > 0 else min(taps, t + 1)
    seen = 1
    while seen < most and not _begins(reset, b, t - seen + 1):
        seen += 1
    return seen


@function
def _reach(reset, b, t, taps, length):
    """Outputs t to this one (exclusive) see token t. Above `length` if what follows the segment sees it too."""
    stop = t + 1
    while stop < t + taps and stop <= length and not (stop < length and _begins(reset, b, stop)):
        stop += 1
    return stop


@function
def _begin(start, bias, first):
    """What every output begins with: the bias, or 0."""
    if bias.shape[0] > 0:
        for i in range(start.size):
            start[i] = bias[first + i]
    else:
        fill(start, ZERO)


@function
def _write_tail(tail, x, state, reset, b, length, first, width):
    """The W - 1 tokens before `length`; 0 where there are none, or where they belong to an earlier document."""
    taps = tail.shape[1] + 1
    kept = 0
    if length > 0:
        kept = min(taps - 1, _seen(reset, state, b, length - 1, taps))
    elif state.shape[0] > 0:
        kept = taps - 1
    for k in range(taps - 1):
        out = vector(address(tail, b, k, first), width)
        if k < taps - 1 - kept:
            fill(out, ZERO)
        else:
            copy(out, vector(_place(x, state, b, length - taps + 1 + k, first, taps), width))


@function
def _sum_of_taps(out, start, taps, factors, place, step):
    """out = start + the sum of factors (W, features) times the W tokens at `place`, each `step` bytes further."""
    width = out.size
    if taps >= 4:
        _taps_4(out, start, factors, place, step)
        done = 4
    else:
        copy(out, start)
        done = 0
    while done < taps:
        add_product(out, vector(factors + 4 * width * done, width), vector(place + done * step, width))
        done += 1


@function
def _taps_4(out, start, factors, place, step):
    """out = start + the sum over the first 4 taps, in one pass."""
    n = out.size
    f0, f1, f2, f3 = (vector(factors + 4 * n * 0, n), vector(factors + 4 * n, n),
                      vector(factors + 4 * n * 2, n), vector(factors + 4 * n * 3, n))  # fmt: skip
    x0, x1, x2, x3 = vector(place, n), vector(place + step, n), vector(place + 2 * step, n), vector(place + 3 * step, n)
    for i in range(n):
        out[i] = start[i] + (f0[i] * x0[i] + f1[i] * x1[i]) + (f2[i] * x2[i] + f3[i] * x3[i])


@function
def _back(out, source, grad_y, b, t, stop, first, taps, factors, sums):
    """What outputs t to `stop` (exclusive) give to token t, `source`, and it to the sums of the taps."""
    width = out.size
    later = max(t, 0)
    while later < stop:
        tap = taps - 1 - (later - t)
        place = 4 * width * tap
        if stop - later >= 4:
            _back_4(out, source, address(grad_y, b, later, first), grad_y.strides[1], factors + place, sums + place)
            later += 4
        else:
            gradient = vector(address(grad_y, b, later, first), width)
            add_product(out, vector(factors + place, width), gradient)
            add_product(vector(sums + place, width), source, gradient)
            later += 1


@function
def _back_4(out, source, place, step, factors, sums):
    """The same for 4 outputs, from `place` on, in one pass: tap by tap downwards."""
    n = out.size
    f0, f1, f2, f3 = (vector(factors, n), vector(factors - 4 * n, n),
                      vector(factors - 8 * n, n), vector(factors - 12 * n, n))  # fmt: skip
    s0, s1, s2, s3 = vector(sums, n), vector(sums - 4 * n, n), vector(sums - 8 * n, n), vector(sums - 12 * n, n)
    g0, g1, g2, g3 = vector(place, n), vector(place + step, n), vector(place + 2 * step, n), vector(place + 3 * step, n)
    for i in range(n):
        z, h0, h1, h2, h3 = source[i], g0[i], g1[i], g2[i], g3[i]
        out[i] += (f0[i] * h0 + f1[i] * h1) + (f2[i] * h2 + f3[i] * h3)
        s0[i] += h0 * z
        s1[i] += h1 * z
        s2[i] += h2 * z
        s3[i] += h3 * z
