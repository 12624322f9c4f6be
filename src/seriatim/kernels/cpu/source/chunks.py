"""What the scans by chunks share: triangles of products between the tokens of a chunk, decays between them, pieces.

A triangle P (n, n) holds a number for every token i and every token j <= i. It is computed by blocks of rows; what lies
above its blocks on the diagonal is neither written nor read. Its rows lie `p_row` apart, with room for a multiple of
BLOCK. Distances are in float32s, places are addresses.
"""

import numpy as np

from seriatim.kernels.cpu.source.functions import exp
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.simd import WIDTH, multiply

__all__ = [
    "BLOCK",
    "fade",
    "lower_product",
    "lower_times",
    "lower_transposed_times",
    "piece_begin",
    "piece_end",
    "running_sum",
    "scale_rows",
    "whole_blocks",
]

BLOCK = max(8, WIDTH)  # rows of a triangle that are computed together
ZERO = np.float32(0)


@function
def whole_blocks(n):
    """n, rounded up to a multiple of BLOCK."""
    return (n + BLOCK - 1) // BLOCK * BLOCK


@function
def piece_end(reset, b, begin, stop):
    """Where the piece of row b that begins at token `begin` ends: where the memory is emptied next, or at `stop`."""
    end = begin + 1
    if reset.shape[0] == 0:
        return stop
    while end < stop and not reset[b, end]:
        end += 1
    return end


@function
def piece_begin(reset, b, start, end):
    """Where the piece of row b that ends before token `end` begins: where the memory was emptied, or at `start`."""
    if reset.shape[0] == 0:
        return start
    begin = end - 1
    while begin > start and not reset[b, begin]:
        begin -= 1
    return begin


@function
def lower_product(n, inner, a, a_row, b, b_row, p, p_row):
    """P = the triangle of A B: A (n, inner), B (inner, n)."""
    for i in range(0, n, BLOCK):
        rows = min(BLOCK, n - i)
        multiply(rows, i + rows, inner, a + 4 * i * a_row, a_row, 1, b, b_row, p + 4 * i * p_row, p_row, 0)


@function
def lower_times(n, columns, p, p_row, b, b_row, c, c_row, keep):
    """C = P B, or C += P B if `keep` is 1: B and C (n, columns). P is 0 above the diagonal inside its blocks."""
    for i in range(0, n, BLOCK):
        rows = min(BLOCK, n - i)
        multiply(rows, columns, i + rows, p + 4 * i * p_row, p_row, 1, b, b_row, c + 4 * i * c_row, c_row, keep)


@function
def lower_transposed_times(n, columns, p, p_row, b, b_row, c, c_row, keep):
    """C = P^T B, or C += P^T B if `keep` is 1: B and C (n, columns). P is 0 above the diagonal inside its blocks."""
    for j in range(0, n, BLOCK):
        columns_p = min(BLOCK, n - j)
        below = p + 4 * (j * p_row + j)
        multiply(columns_p, columns, n - j, below, 1, p_row, b + 4 * j * b_row, b_row, c + 4 * j * c_row, c_row, keep)


@function
def fade(n, log_decays, between, p, p_row, factor):
    """P[i, j] *= factor * exp(the sum of log decays j + 1 to i) for j <= i; 0 above the diagonal inside the blocks.

    The sums run down the columns: a log decay of any size, -inf included, leaves those exact that do not span it.
    log_decays (n). between (n rounded up to blocks) is left with the last row's sums: from each token to the last.
    """
    decays, sums = vector(log_decays, n), vector(between, whole_blocks(n))
    for j in range(sums.size):
        sums[j] = ZERO
    for i in range(n):
        decay, diagonal = decays[i], i // BLOCK * BLOCK
        row = vector(p + 4 * i * p_row, diagonal + BLOCK)
        for j in range(0, diagonal, BLOCK):
            for lane in range(BLOCK):
                sums[j + lane] += decay
                row[j + lane] *= factor * exp(sums[j + lane])
        for lane in range(BLOCK):
            total = sums[diagonal + lane] + (decay if lane < i - diagonal else ZERO)
            sums[diagonal + lane] = total
            faded = row[diagonal + lane] * (factor * exp(total))
            row[diagonal + lane] = faded if lane <= i - diagonal else ZERO


@function
def running_sum(n, x, sums):
    """sums[i] = x[0] + ... + x[i]; the last one is returned."""
    total = ZERO
    given, found = vector(x, n), vector(sums, n)
    for i in range(n):
        total += given[i]
        found[i] = total
    return total


@function
def scale_rows(rows, columns, x, x_row, factors):
    """x[i, :] *= factors[i]."""
    by = vector(factors, rows)
    for i in range(rows):
        line, factor = vector(x + 4 * i * x_row, columns), by[i]
        for j in range(columns):
            line[j] *= factor
