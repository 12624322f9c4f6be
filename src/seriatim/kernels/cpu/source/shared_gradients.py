"""The gradients of a piece that the heads of a group read, summed over the heads where these share.

With the names of :mod:`shared_pieces`, do the gradients of the outputs and dS those of the state after the piece:
dP = do v^T, dv = a (k dS) + P^T do, dq = sum (s b do) S^T + dG k, dk = sum (a v) dS^T + dG^T q with dG = sum s D dP,
and dS = T dS + q^T (s b do).
"""

from typing import NamedTuple

from seriatim.kernels.cpu.source.chunks import (
    lower_product,
    lower_times,
    lower_transposed_times,
    scale_rows,
    whole_blocks,
)
from seriatim.kernels.cpu.source.lanes import every, lanes, load, store, sum_of
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.lines import add, fill
from seriatim.kernels.cpu.source.matrix_decays import unfade_row
from seriatim.kernels.cpu.source.matrix_pieces import ZERO
from seriatim.kernels.cpu.source.shared_pieces import fade, faded, renew
from seriatim.kernels.cpu.source.simd import WIDTH, multiply, transpose

__all__ = ["GradientRoom", "Gradients", "begin_sums", "finish_sums", "head_gradients"]


class Gradients(NamedTuple):
    """Where a head's gradients lie: of its outputs, to be read, of its values and log decays, to be written."""

    o: int
    o_row: int
    v: int
    v_row: int
    log_decay: int
    decay_row: int


class GradientRoom(NamedTuple):
    """Places of working memory beside those of :class:`shared_pieces.Room`; all rows lie `chunk` apart."""

    queries_transposed: int
    grad_q: int
    grad_k: int
    one_head: int
    grad_products: int
    scores: int
    grad_scores: int
    transposed: int


@function
def begin_sums(tokens, room, more):
    """Empties the sums over heads."""
    size = tokens.keys * room.chunk
    transpose(tokens.n, tokens.keys, room.queries, tokens.keys, more.queries_transposed, room.chunk)
    fill(vector(more.grad_q, size), ZERO)
    fill(vector(more.grad_k, size), ZERO)
    fill(vector(more.grad_products, room.chunk * room.chunk), ZERO)


@function
def finish_sums(tokens, room, more, grad_q, q_row, grad_k, k_row):
    """The gradients of queries and keys from the sums over heads."""
    n, keys, chunk = tokens.n, tokens.keys, room.chunk
    transpose(keys, n, more.grad_q, chunk, grad_q, q_row)
    lower_times(n, keys, more.grad_products, chunk, room.keys, keys, grad_q, q_row, 1)
    transpose(keys, n, more.grad_k, chunk, grad_k, k_row)
    lower_transposed_times(n, keys, more.grad_products, chunk, room.queries, keys, grad_k, k_row, 1)


@function
def head_gradients(tokens, head, grads, room, more, S, S_row, empty, dS, live):
    """Writes a head's gradients, adds to the sums over heads, and turns dS (K, V) into that of the state before.

    S: that state, unless it is `empty`. dS counts only if `live`.
    """
    n, keys, values, chunk = tokens.n, tokens.keys, tokens.values, room.chunk
    fade(tokens, head, room)
    for i in range(n):
        columns, at = whole_blocks(i + 1), 4 * i * chunk
        by, product = vector(room.between + at, columns), vector(room.products + at, columns)
        row = vector(more.scores + at, columns)
        for j in range(columns):
            row[j] = by[j] * product[j]
    transpose(n, values, head.v, head.v_row, more.transposed, chunk)
    lower_product(n, values, grads.o, grads.o_row, more.transposed, chunk, more.grad_scores, chunk)
    across = ZERO
    if live and not empty:
        across = vector(room.total, 1)[0] * _dot(keys, values, S, S_row, dS)
    _written(tokens, head, grads, room, more, dS, live)
    _read(tokens, grads, room, more, S, S_row, empty, dS, live)
    _unfade(tokens, grads, room, more, across)


@function
def _written(tokens, head, grads, room, more, dS, live):
    """dv and the sum for dk. What a decay to the piece's end fades, times the gradient there, goes to `after`."""
    n, keys, values, chunk = tokens.n, tokens.keys, tokens.values, room.chunk
    after = vector(room.after, n)
    if live:
        multiply(n, values, keys, room.keys, keys, 1, dS, values, grads.v, grads.v_row, 0)
        scale_rows(n, values, grads.v, grads.v_row, room.after)
        for m in range(values):
            row = vector(more.transposed + 4 * m * chunk, n)
            for i in range(n):
                row[i] *= after[i]
        multiply(keys, n, values, dS, values, 1, more.transposed, chunk, more.grad_k, chunk, 1)
        for i in range(n):
            after[i] = _dot(1, values, grads.v + 4 * i * grads.v_row, 0, head.v + 4 * i * head.v_row)
    else:
        fill(after, ZERO)
    keep = 1 if live else 0
    lower_transposed_times(n, values, more.scores, chunk, grads.o, grads.o_row, grads.v, grads.v_row, keep)


@function
def _read(tokens, grads, room, more, S, S_row, empty, dS, live):
    """The sum for dq, and dS. What a decay from the piece's start fades, times the gradient there, goes to `before`."""
    n, keys, values, chunk = tokens.n, tokens.keys, tokens.values, room.chunk
    before = vector(room.before, n)
    if empty:
        fill(before, ZERO)
        return
    faded(n, values, grads.o, grads.o_row, room.before, room.faded)
    transpose(n, values, room.faded, values, more.transposed, chunk)
    multiply(keys, n, values, S, S_row, 1, more.transposed, chunk, more.one_head, chunk, 0)
    for first in range(0, n, WIDTH):
        some, total = lanes(n - first), every(ZERO)
        for m in range(keys):
            at = 4 * (m * chunk + first)
            found = load(more.one_head + at, some)
            total = total + found * load(more.queries_transposed + at, some)
            store(load(more.grad_q + at, some) + found, more.grad_q + at, some)
        store(total, room.before + 4 * first, some)
    renew(keys, values, n, room.queries, room.faded, room, dS, values, not live, dS, values)


@function
def _unfade(tokens, grads, room, more, across):
    """Adds to the sum of gradients in products, and writes those of the log decays (see :mod:`matrix_decays`)."""
    n, chunk = tokens.n, room.chunk
    sums = more.transposed + 0
    fill(vector(sums, whole_blocks(n)), ZERO)
    found, read, written = vector(room.log_decays, n), vector(room.before, n), vector(room.after, n)
    for down in range(n):
        i = n - 1 - down
        at = 4 * i * chunk
        found[i] = unfade_row(i, sums, more.grad_scores + at, more.scores + at, room.between + at)
        columns = whole_blocks(i + 1)
        add(vector(more.grad_products + at, columns), vector(more.grad_scores + at, columns))
    if grads.log_decay == 0:
        return
    later = ZERO
    for i in range(n):
        found[i] += across
        across += written[i]
    for down in range(n):
        i = n - 1 - down
        later += read[i]
        vector(grads.log_decay + 4 * i * grads.decay_row, 1)[0] = found[i] + later


@function
def _dot(rows, columns, x, x_row, y):
    """The sum of x * y; the rows of y lie side by side."""
    total = every(ZERO)
    for i in range(rows):
        for first in range(0, columns, WIDTH):
            some = lanes(columns - first)
            total = total + load(x + 4 * (i * x_row + first), some) * load(y + 4 * (i * columns + first), some)
    return sum_of(total)
