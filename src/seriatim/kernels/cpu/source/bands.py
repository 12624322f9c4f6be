"""Products of a block of queries with a block of keys, of which each key is seen by some queries in a row.

S (keys, QUERIES) has the keys down and the queries across, so that what is done for every query is done with vectors.
Keys and queries stand in time: key i at `offset` + i, counted from the first query; it is seen by the queries from
there on, `window` of them at most. What is not seen is left out of the products, as far as it fills whole groups.
Addresses and distances are as in `multiply`.
"""

import numpy as np

from seriatim.kernels.cpu.source.attention_layout import QUERIES
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.simd import WIDTH, multiply, transpose

__all__ = ["LINE", "add_to_keys", "add_to_queries", "scores", "turned"]

LINE = 4 * QUERIES  # bytes of a number for every query
GROUP = 12  # keys or queries whose products begin and end together
ZERO = np.float32(0)


@function
def turned(rows, inner, x, x_row, target, factor):
    """target (inner, QUERIES) = factor times the transpose of x (rows, inner), and 0 in the columns behind it."""
    transpose(rows, inner, x, x_row, target, QUERIES)
    for k in range(inner):
        line = vector(target + 4 * k * QUERIES, QUERIES)
        for r in range(rows):
            line[r] *= factor
        for r in range(rows, QUERIES):
            line[r] = ZERO


@function
def scores(count, rows, inner, offset, window, keys, key_row, queries, out):
    """S[i, r] = keys[i] . queries[:, r] where r sees i: keys (count, inner), queries (inner, QUERIES)."""
    i = 0
    while i < count:
        n = _together(i, count, rows, offset, window)
        begin, end = _seen_by(i, n, rows, offset, window)
        if end > begin:
            multiply(n, end - begin, inner, keys + 4 * i * key_row, key_row, 1,
                     queries + 4 * begin, QUERIES, out + 4 * (i * QUERIES + begin), QUERIES, 0)  # fmt: skip
        i += n


@function
def add_to_keys(count, rows, columns, offset, window, s, x, x_row, out, out_row):
    """out[i] += the sum over r of S[i, r] x[r]: x (rows, columns), out (count, columns). S is 0 where not seen."""
    i = 0
    while i < count:
        n = _together(i, count, rows, offset, window)
        begin, end = _seen_by(i, n, rows, offset, window)
        end = min(end, rows)
        if end > begin:
            multiply(n, columns, end - begin, s + 4 * (i * QUERIES + begin), QUERIES, 1,
                     x + 4 * begin * x_row, x_row, out + 4 * i * out_row, out_row, 1)  # fmt: skip
        i += n


@function
def add_to_queries(count, rows, columns, offset, window, s, x, x_row, out, out_row):
    """out[r] += the sum over i of S[i, r] x[i]: x (count, columns), out (rows, columns). S is 0 where not seen."""
    whole = offset + count <= 1 and offset + window >= rows
    r = 0
    while r < rows:
        n = rows if whole else min(GROUP, rows - r)
        begin, end = max(0, r + 1 - window - offset), min(count, r + n - offset)
        if end > begin:
            multiply(n, columns, end - begin, s + 4 * (begin * QUERIES + r), 1, QUERIES,
                     x + 4 * begin * x_row, x_row, out + 4 * r * out_row, out_row, 1)  # fmt: skip
        r += n


@function
def _together(i, count, rows, offset, window):
    """How many keys from i on are taken together: all those that every query sees, else a group."""
    everyone = offset + i <= 0 and offset + i + window >= rows
    return min(count - i, max(GROUP, 1 - offset - i) if everyone else GROUP)


@function
def _seen_by(i, n, rows, offset, window):
    """The queries that see any of the keys i to i + n, from and to (exclusive), rounded outwards to whole vectors."""
    begin = max(0, offset + i) // WIDTH * WIDTH
    end = min(rows, offset + i + n - 1 + window)
    return begin, (max(end, 0) + WIDTH - 1) // WIDTH * WIDTH
