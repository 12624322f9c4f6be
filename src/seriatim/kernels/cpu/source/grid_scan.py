"""Kernels of grid_scan. A work item is one head of one grid; its values are taken WIDTH at a time, node by node.

With L and A what enters a node from the left and from above, and R and D the gradients of what it hands on, the
gradient g of what it reads, and a matrix's product with a vector on either side,

dL = T00 R + T10 D + M0 q g^T,   dT00 = <R, L>,   dS0 = k R v,   dM0 = q L g,   dq = (M0 L + M1 A) g,
dA = T01 R + T11 D + M1 q g^T,   dT01 = <R, A>,   dS1 = k D v,   dM1 = q A g,   dk = (S0 R + S1 D) v,

dv = S0 k R + S1 k D,   dT10 = <D, L>,   dT11 = <D, A>. L and A are computed again, a segment of rows at a time.

Dimensions: B batch, R rows, C columns, H heads, K key dim, V value dim.
"""

from typing import NamedTuple

import numpy as np

from seriatim.kernels.cpu.source import grid_layout
from seriatim.kernels.cpu.source.lanes import WIDTH, every, lanes, load, number, store, sum_of
from seriatim.kernels.cpu.source.language import Address, Floats5, Index, address, function, kernel

__all__ = ["backward", "forward"]

VECTOR = 4 * WIDTH  # bytes
ZERO = np.float32(0)
segment_count = function(grid_layout.segment_count)


@kernel
def forward(
    item: Index,
    scratch: Address,
    q: Floats5,
    k: Floats5,
    v: Floats5,
    source: Floats5,
    transition: Floats5,
    mark: Floats5,
    left: Floats5,
    top: Floats5,
    upwards: Index,
    leftwards: Index,
    o: Floats5,
    right: Floats5,
    bottom: Floats5,
):
    """o (B, R, C, H, V), and if there is room for them what leaves at the right and at the bottom.

    transition is (B, R, C, H, 4). It begins at the last row where `upwards` is 1, at the last column where `leftwards`
    is. scratch: `forward_room` of cells of K * WIDTH.
    """
    rows, columns, heads, keys, values = q.shape[1], q.shape[2], q.shape[3], q.shape[4], v.shape[4]
    b, h = item // heads, item % heads
    cell = VECTOR * keys
    above, beside = scratch + cell, scratch
    for first in range(0, values, WIDTH):
        some = lanes(values - first)
        for j in range(columns):
            _enter(above + j * cell, top, b, _place(j, columns, leftwards), h, first, some, keys)
        for i in range(rows):
            r = _place(i, rows, upwards)
            _enter(beside, left, b, r, h, first, some, keys)
            for j in range(columns):
                c = _place(j, columns, leftwards)
                gates = _gates(source, transition, mark, b, r, c, h)
                places = address(q, b, r, c, h), address(k, b, r, c, h)
                value = load(address(v, b, r, c, h, first), some)
                out = _read_and_hand_on(beside, above + j * cell, keys, places, value, gates)
                store(out, address(o, b, r, c, h, first), some)
            _leave(right, b, r, h, first, some, beside, keys)
        for j in range(columns):
            _leave(bottom, b, _place(j, columns, leftwards), h, first, some, above + j * cell, keys)


@kernel
def backward(
    item: Index,
    scratch: Address,
    grad_o: Floats5,
    grad_right: Floats5,
    grad_bottom: Floats5,
    q: Floats5,
    k: Floats5,
    v: Floats5,
    source: Floats5,
    transition: Floats5,
    mark: Floats5,
    left: Floats5,
    top: Floats5,
    upwards: Index,
    leftwards: Index,
    segment: Index,
    grad_q: Floats5,
    grad_k: Floats5,
    grad_v: Floats5,
    grad_source: Floats5,
    grad_transition: Floats5,
    grad_mark: Floats5,
    grad_left: Floats5,
    grad_top: Floats5,
):
    """Adds to the gradients, which begin at 0; those of left and top are written.

    A segment is so many rows. scratch: `backward_room` of cells of K * WIDTH.
    """
    rows, columns, heads, keys, values = q.shape[1], q.shape[2], q.shape[3], q.shape[4], v.shape[4]
    b, h = item // heads, item % heads
    cell = VECTOR * keys
    line = columns * cell
    segments = segment_count(rows, segment)
    lefts = scratch + segments * line
    tops = lefts + segment * (line + cell)
    below = tops + (segment + 1) * line
    behind = below + line
    for first in range(0, values, WIDTH):
        some = lanes(values - first)
        for j in range(columns):
            c = _place(j, columns, leftwards)
            _enter(scratch + j * cell, top, b, c, h, first, some, keys)
            _enter(below + j * cell, grad_bottom, b, c, h, first, some, keys)
        for s in range(segments - 1):
            _copy(tops, scratch + s * line, columns * keys)
            for i in range(s * segment, (s + 1) * segment):
                r = _place(i, rows, upwards)
                _enter(lefts, left, b, r, h, first, some, keys)
                for j in range(columns):
                    c, above = _place(j, columns, leftwards), tops + j * cell
                    gates = _gates(source, transition, mark, b, r, c, h)
                    value = load(address(v, b, r, c, h, first), some)
                    _hand_on(lefts, above, lefts, above, keys, address(k, b, r, c, h), value, gates)
            _copy(scratch + (s + 1) * line, tops, columns * keys)
        for s in range(segments - 1, -1, -1):
            begin, end = s * segment, min(rows, (s + 1) * segment)
            _copy(tops, scratch + s * line, columns * keys)
            for i in range(begin, end):
                r = _place(i, rows, upwards)
                beside, above = lefts + (i - begin) * (line + cell), tops + (i - begin) * line
                _enter(beside, left, b, r, h, first, some, keys)
                for j in range(columns):
                    c = _place(j, columns, leftwards)
                    gates = _gates(source, transition, mark, b, r, c, h)
                    value = load(address(v, b, r, c, h, first), some)
                    _hand_on(beside, above, beside + cell, above + line, keys, address(k, b, r, c, h), value, gates)
                    beside, above = beside + cell, above + cell
            for i in range(end - 1, begin - 1, -1):
                r = _place(i, rows, upwards)
                _enter(behind, grad_right, b, r, h, first, some, keys)
                for j in range(columns - 1, -1, -1):
                    c = _place(j, columns, leftwards)
                    entered = lefts + (i - begin) * (line + cell) + j * cell, tops + (i - begin) * line + j * cell
                    gates = _gates(source, transition, mark, b, r, c, h)
                    places = address(q, b, r, c, h), address(k, b, r, c, h)
                    news = address(grad_q, b, r, c, h), address(grad_k, b, r, c, h)
                    value = load(address(v, b, r, c, h, first), some)
                    gradient = load(address(grad_o, b, r, c, h, first), some)
                    given = behind, below + j * cell
                    grad_value, found = _take_back(entered, given, keys, places, value, gradient, gates, news)
                    store(grad_value, address(grad_v, b, r, c, h, first), some)
                    _add_gates(grad_source, grad_transition, grad_mark, b, r, c, h, found)
                _leave(grad_left, b, r, h, first, some, behind, keys)
        for j in range(columns):
            _leave(grad_top, b, _place(j, columns, leftwards), h, first, some, below + j * cell, keys)


@function
def _place(index, count, backwards):
    """The row or column that comes as the index-th."""
    return count - 1 - index if backwards else index


class Gates(NamedTuple):
    """Of a node: transitions out of (right, down) by in from (left, above), sources and marks."""

    t00: float
    t01: float
    t10: float
    t11: float
    s0: float
    s1: float
    m0: float
    m1: float


@function
def _gates(source, transition, mark, b, r, c, h):
    """The gates of a node."""
    return Gates(
        transition[b, r, c, h, 0], transition[b, r, c, h, 1], transition[b, r, c, h, 2], transition[b, r, c, h, 3],
        source[b, r, c, h, 0], source[b, r, c, h, 1], mark[b, r, c, h, 0], mark[b, r, c, h, 1],
    )  # fmt: skip


@function
def _add_gates(source, transition, mark, b, r, c, h, gates):
    """The gradients of a node's gates."""
    transition[b, r, c, h, 0] += gates.t00
    transition[b, r, c, h, 1] += gates.t01
    transition[b, r, c, h, 2] += gates.t10
    transition[b, r, c, h, 3] += gates.t11
    source[b, r, c, h, 0] += gates.s0
    source[b, r, c, h, 1] += gates.s1
    mark[b, r, c, h, 0] += gates.m0
    mark[b, r, c, h, 1] += gates.m1


@function
def _enter(cell, border, b, index, h, first, some, keys):
    """cell = some values of the border (B, R or C, H, K, V), or 0 if there is none."""
    whole = lanes(WIDTH)
    for i in range(keys):
        if border.shape[0] > 0:
            store(load(address(border, b, index, h, i, first), some), cell + VECTOR * i, whole)
        else:
            store(every(ZERO), cell + VECTOR * i, whole)


@function
def _leave(border, b, index, h, first, some, cell, keys):
    """Some values of the border = cell, if there is one."""
    if border.shape[0] > 0:
        for i in range(keys):
            store(load(cell + VECTOR * i, lanes(WIDTH)), address(border, b, index, h, i, first), some)


@function
def _copy(target, origin, count):
    """So many vectors."""
    whole = lanes(WIDTH)
    for i in range(count):
        store(load(origin + VECTOR * i, whole), target + VECTOR * i, whole)


@function
def _read_and_hand_on(left, above, keys, places, value, gates):
    """What a node reads; what it hands on is written in place of what entered it."""
    q, k = places
    whole = lanes(WIDTH)
    t00, t01, t10, t11 = every(gates.t00), every(gates.t01), every(gates.t10), every(gates.t11)
    to_right, downwards = value * gates.s0, value * gates.s1
    x0, x1 = every(ZERO), every(ZERO)
    for i in range(keys):
        place, key, query = VECTOR * i, number(k + 4 * i), number(q + 4 * i)
        L, A = load(left + place, whole), load(above + place, whole)
        x0, x1 = x0 + query * L, x1 + query * A
        store(t00 * L + t01 * A + key * to_right, left + place, whole)
        store(t10 * L + t11 * A + key * downwards, above + place, whole)
    return x0 * gates.m0 + x1 * gates.m1


@function
def _hand_on(left, above, right, below, keys, k, value, gates):
    """What a node hands on."""
    whole = lanes(WIDTH)
    t00, t01, t10, t11 = every(gates.t00), every(gates.t01), every(gates.t10), every(gates.t11)
    to_right, downwards = value * gates.s0, value * gates.s1
    for i in range(keys):
        place, key = VECTOR * i, number(k + 4 * i)
        L, A = load(left + place, whole), load(above + place, whole)
        store(t00 * L + t01 * A + key * to_right, right + place, whole)
        store(t10 * L + t11 * A + key * downwards, below + place, whole)


@function
def _take_back(entered, given, keys, places, value, gradient, gates, news):
    """The gradients of a node's value and gates. Those of what entered it replace those of what left it, `given`; those
    of its query and key are added at `news`.
    """
    (left, above), (right, below), (q, k), (grad_q, grad_k) = entered, given, places, news
    whole, none = lanes(WIDTH), every(ZERO)
    t00, t01, t10, t11 = every(gates.t00), every(gates.t01), every(gates.t10), every(gates.t11)
    to_right, downwards = value * gates.s0, value * gates.s1
    from_left, from_above = gradient * gates.m0, gradient * gates.m1
    d00, d01, d10, d11, x0, x1, y0, y1 = none, none, none, none, none, none, none, none
    for i in range(keys):
        place, key, query = VECTOR * i, number(k + 4 * i), number(q + 4 * i)
        L, A = load(left + place, whole), load(above + place, whole)
        R, D = load(right + place, whole), load(below + place, whole)
        store(t00 * R + t10 * D + query * from_left, right + place, whole)
        store(t01 * R + t11 * D + query * from_above, below + place, whole)
        d00, d01, d10, d11 = d00 + R * L, d01 + R * A, d10 + D * L, d11 + D * A
        x0, x1, y0, y1 = x0 + query * L, x1 + query * A, y0 + key * R, y1 + key * D
        _add(grad_q + 4 * i, sum_of(L * from_left + A * from_above))
        _add(grad_k + 4 * i, sum_of(R * to_right + D * downwards))
    found = Gates(sum_of(d00), sum_of(d01), sum_of(d10), sum_of(d11),
                  sum_of(y0 * value), sum_of(y1 * value), sum_of(x0 * gradient), sum_of(x1 * gradient))  # fmt: skip
    return y0 * gates.s0 + y1 * gates.s1, found


@function
def _add(place, value):
    """Adds to the number at an address."""
    one = lanes(1)
    store(load(place, one) + value, place, one)
