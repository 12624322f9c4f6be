"""Kernels of diagonal_scan. A work item is all of time for one row of the batch and some features.

    h_t = a_t h_{t-1} + b_t,    grad_b_t = grad_h_t + conj(a_{t+1}) grad_b_{t+1},    grad_a_t = grad_b_t conj(h_{t-1})

What is carried from token to token is float64, so that its rounding does not add up: the time goes into reading memory.
Dimensions: B batch, T time, F features. With `pairs` 1, two in a row are the real and imaginary part of a complex one.
"""

import numpy as np

from seriatim.kernels.cpu.source.diagonal_steps import add, advance, clear, doubles, retreat, write
from seriatim.kernels.cpu.source.language import (
    Address,
    Bools2,
    Floats2,
    Floats3,
    Index,
    address,
    function,
    kernel,
    vector,
)
from seriatim.kernels.cpu.source.lines import fill
from seriatim.kernels.cpu.source.streams import begins, prefetch, prefetch_to_write

__all__ = ["backward", "forward"]

LINE = 16  # numbers of a line of the cache
AHEAD = 1024  # numbers: so early memory is asked for


@kernel
def forward(
    item: Index,
    scratch: Address,
    a: Floats3,
    b: Floats3,
    state: Floats2,
    reset: Bools2,
    pairs: Index,
    width: Index,
    h: Floats3,
    last: Floats2,
):
    """h (B, T, F) and the last state (B, F). An item is `width` features. scratch: 2 width."""
    row, first, n = _part(item, b.shape[2], width)
    carried, ahead = doubles(scratch, n), max(1, AHEAD // n)
    clear(carried)
    if state.shape[0] > 0:
        add(carried, address(state, row, first), pairs)
    for t in range(b.shape[1]):
        for i in range(0, n, LINE):
            prefetch(address(a, row, t + ahead, first) + 4 * i)
            prefetch(address(b, row, t + ahead, first) + 4 * i)
            prefetch_to_write(address(h, row, t + ahead, first) + 4 * i)
        if begins(reset, row, t):
            clear(carried)
        advance(carried, address(a, row, t, first), address(b, row, t, first), address(h, row, t, first), pairs)
    write(address(last, row, first), carried, pairs)


@kernel
def backward(
    item: Index,
    scratch: Address,
    grad_h: Floats3,
    grad_last: Floats2,
    a: Floats3,
    h: Floats3,
    state: Floats2,
    reset: Bools2,
    pairs: Index,
    width: Index,
    adds: Index,
    grad_a: Floats3,
    grad_b: Floats3,
    grad_state: Floats2,
):
    """grad_b, grad_state, and grad_a, of which if `adds` is 1 the sum over time: grad_a (B, 1, F). scratch: 4 width."""
    row, first, n = _part(item, h.shape[2], width)
    carried, sums, ahead = doubles(scratch, n), doubles(scratch + 8 * n, n * adds), max(1, AHEAD // n)
    clear(carried)
    clear(sums)
    add(carried, address(grad_last, row, first), pairs)
    for t in range(h.shape[1] - 1, -1, -1):
        for i in range(0, n, LINE):
            prefetch(address(grad_h, row, t - ahead, first) + 4 * i)
            prefetch(address(a, row, t - ahead, first) + 4 * i)
            prefetch(address(h, row, t - ahead, first) + 4 * i)
            prefetch_to_write(address(grad_b, row, t - ahead, first) + 4 * i)
        above, out, slope = (
            address(grad_h, row, t, first),
            address(grad_b, row, t, first),
            address(grad_a, row, 0, first),
        )
        if adds == 0:
            slope = address(grad_a, row, t, first)
        before = address(h, row, t - 1, first)
        if t == 0 and state.shape[0] > 0:
            before = address(state, row, first)
        if begins(reset, row, t) or (t == 0 and state.shape[0] == 0):
            _retreat_first(carried, above, out, pairs)
            if adds == 0:
                fill(vector(slope, n), np.float32(0))
        else:
            retreat(carried, sums, address(a, row, t, first), before, above, out, slope, pairs)
    if adds == 1:
        write(address(grad_a, row, 0, first), sums, pairs)
    write(address(grad_state, row, first), carried, pairs)


@function
def _retreat_first(carried, above, out, pairs):
    """A token before which there was nothing."""
    add(carried, above, pairs)
    write(out, carried, pairs)
    clear(carried)


@function
def _part(item, features, width):
    """Of an item: the row of the batch, the first feature, and how many."""
    across = (features + width - 1) // width
    first = item % across * width
    return item // across, first, min(width, features - first)
