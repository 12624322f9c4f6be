"""A run of tokens that the heads of a group read at once: what all heads share, and what one reads and writes.

With b_i the decay from the piece's start to token i, a_j that from token j to its end, T that over all of it and
D[i, j] the one between two tokens, a head does o = s b (q S) + P v and S = T S + k^T (a v), where P = s D (q k^T):
queries and keys stay as they are for all heads. Nothing is divided by a decay.
"""

from typing import NamedTuple

from seriatim.kernels.cpu.source.chunks import lower_product, lower_times, scale_rows, whole_blocks
from seriatim.kernels.cpu.source.functions import exp
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.lines import copy
from seriatim.kernels.cpu.source.matrix_pieces import ZERO, carry, decays_between, exponentials
from seriatim.kernels.cpu.source.simd import multiply, transpose

__all__ = ["Head", "Room", "Tokens", "compare", "fade", "faded", "read_and_write", "renew"]


class Tokens(NamedTuple):
    """The tokens of a piece, where their queries and keys lie, and how far apart."""

    n: int
    keys: int
    values: int
    q: int
    q_row: int
    k: int
    k_row: int
    scale: float


class Head(NamedTuple):
    """Where a head's values and log decays lie; the latter at 0 if there are none."""

    v: int
    v_row: int
    log_decay: int
    decay_row: int


class Room(NamedTuple):
    """Places of working memory; matrices' rows lie `chunk` apart where tokens are columns, else `keys` or `values`."""

    chunk: int
    log_decays: int
    before: int
    after: int
    total: int
    change: int
    queries: int
    keys: int
    keys_transposed: int
    products: int
    between: int
    faded: int
    written: int
    free: int


@function
def compare(tokens, room):
    """What all heads share: queries and keys side by side, and the products between tokens."""
    n, keys, chunk = tokens.n, tokens.keys, room.chunk
    for i in range(n):
        copy(vector(room.queries + 4 * i * keys, keys), vector(tokens.q + 4 * i * tokens.q_row, keys))
        copy(vector(room.keys + 4 * i * keys, keys), vector(tokens.k + 4 * i * tokens.k_row, keys))
    transpose(n, keys, room.keys, keys, room.keys_transposed, chunk)
    lower_product(n, keys, room.queries, keys, room.keys_transposed, chunk, room.products, chunk)


@function
def fade(tokens, head, room):
    """A head's decays. The sums of log decays start at either end, so that none is a difference of two."""
    n = tokens.n
    g, before, after = vector(room.log_decays, n), vector(room.before, n), vector(room.after, n)
    for i in range(n):
        g[i] = vector(head.log_decay + 4 * i * head.decay_row, 1)[0] if head.log_decay != 0 else ZERO
    up, down = ZERO, ZERO
    for i in range(n):
        up += g[i]
        before[i] = up
        after[n - 1 - i] = down
        down += g[n - 1 - i]
    for i in range(n):
        before[i] = tokens.scale * exp(before[i])
        after[i] = exp(after[i])
    vector(room.total, 1)[0] = up
    exponentials(1, room)
    decays_between(tokens, room)


@function
def faded(n, columns, x, x_row, factors, out):
    """out[i, :] = factors[i] x[i, :], its rows side by side."""
    by = vector(factors, n)
    for i in range(n):
        source, target, factor = vector(x + 4 * i * x_row, columns), vector(out + 4 * i * columns, columns), by[i]
        for j in range(columns):
            target[j] = factor * source[j]


@function
def renew(keys, columns, n, tokens_keys, x, room, S, S_row, empty, target, target_row):
    """target = T S + keys^T x, or without S if that is `empty`. It may be S itself."""
    if empty:
        multiply(keys, columns, n, tokens_keys, 1, keys, x, columns, target, target_row, 0)
        return
    multiply(keys, columns, n, tokens_keys, 1, keys, x, columns, room.written, columns, 0)
    total, change = vector(room.total, 1)[0], vector(room.change, 1)[0]
    for m in range(keys):
        row = room.written + 4 * m * columns
        carry(columns, S + 4 * m * S_row, total, change, row, target + 4 * m * target_row)


@function
def read_and_write(tokens, head, room, S, S_row, empty, after, after_row, writes, o, o_row):
    """A head's outputs, and if it `writes` the state after the piece."""
    n, keys, values, chunk = tokens.n, tokens.keys, tokens.values, room.chunk
    fade(tokens, head, room)
    if not empty:
        multiply(n, values, keys, room.queries, keys, 1, S, S_row, o, o_row, 0)
        scale_rows(n, values, o, o_row, room.before)
    for i in range(n):
        columns = whole_blocks(i + 1)
        row, product = vector(room.between + 4 * i * chunk, columns), vector(room.products + 4 * i * chunk, columns)
        for j in range(columns):
            row[j] *= product[j]
    lower_times(n, values, room.between, chunk, head.v, head.v_row, o, o_row, 0 if empty else 1)
    if writes:
        faded(n, values, head.v, head.v_row, room.after, room.faded)
        renew(keys, values, n, room.keys, room.faded, room, S, S_row, empty, after, after_row)
