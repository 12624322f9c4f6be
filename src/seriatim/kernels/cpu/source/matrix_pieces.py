"""A run of tokens of one head, read at once: its decays, its scores, what it reads and what it writes.

With b_i the decay from the piece's start to token i, a_j that from token j to its end and T that over all of it, and
P[i, j] the faded scores, the piece does o = (s b q) S + P v and S = T S + (a k)^T v. Nothing is divided by a decay.
"""

from typing import NamedTuple

import numpy as np

from seriatim.kernels.cpu.source.chunks import BLOCK, lower_product, whole_blocks
from seriatim.kernels.cpu.source.functions import exp
from seriatim.kernels.cpu.source.key_decays import block_scores
from seriatim.kernels.cpu.source.lanes import every, lanes, load, store, where
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.simd import WIDTH, multiply, transpose

__all__ = [
    "NO_DECAY",
    "PER_HEAD",
    "PER_KEY",
    "Piece",
    "Room",
    "carry",
    "decays_between",
    "exponentials",
    "fade",
    "score",
    "write",
]

NO_DECAY, PER_HEAD, PER_KEY = 0, 1, 2
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
NEAR = np.float32(0.34)  # log decays up to this size change a state by less than half of it


class Piece(NamedTuple):
    """Where the tokens of a piece lie, and how far apart."""

    n: int
    keys: int
    values: int
    q: int
    q_row: int
    k: int
    k_row: int
    v: int
    v_row: int
    log_decay: int
    decay_row: int
    kind: int
    scale: float


class Room(NamedTuple):
    """Places of working memory; matrices' rows lie `chunk` apart where tokens are columns, else `keys`."""

    chunk: int
    log_decays: int
    before: int
    after: int
    total: int
    change: int
    decays: int
    queries: int
    faded_queries: int
    faded_keys: int
    keys_transposed: int
    scores: int
    between: int
    written: int
    free: int


@function
def fade(piece, room):
    """Writes b q and a k (n, keys), the decay over the piece (keys), and what `score` needs."""
    if piece.kind == PER_KEY:
        _fade_per_key(piece, room)
    else:
        _fade_per_head(piece, room)


@function
def score(piece, room):
    """Writes the scores P, with the scale, 0 above the diagonal of their blocks. To be called after `fade`."""
    n, chunk = piece.n, room.chunk
    transpose(n, piece.keys, piece.k, piece.k_row, room.keys_transposed, chunk)
    if piece.kind == PER_KEY:
        block_scores(piece.keys, room.queries, piece.keys, room.keys_transposed, chunk,
                     room.decays, piece.keys, room.scores, chunk)  # fmt: skip
        return
    decays_between(piece, room)
    lower_product(n, piece.keys, piece.q, piece.q_row, room.keys_transposed, chunk, room.scores, chunk)
    for i in range(n):
        columns = whole_blocks(i + 1)
        row, by = vector(room.scores + 4 * i * chunk, columns), vector(room.between + 4 * i * chunk, columns)
        for j in range(columns):
            row[j] *= by[j]


@function
def write(piece, room, S, S_row, empty, target, target_row):
    """The state after the piece: target = T S + (a k)^T v, or without S if that is `empty`. It may be S itself."""
    n, keys, columns = piece.n, piece.keys, piece.values
    if empty or (piece.kind == NO_DECAY and target == S):
        keep = 0 if empty else 1
        multiply(keys, columns, n, room.faded_keys, 1, keys, piece.v, piece.v_row, target, target_row, keep)
        return
    multiply(keys, columns, n, room.faded_keys, 1, keys, piece.v, piece.v_row, room.written, columns, 0)
    total, change = vector(room.total, keys), vector(room.change, keys)
    for m in range(keys):
        source, out = S + 4 * m * S_row, target + 4 * m * target_row
        carry(columns, source, total[m], change[m], room.written + 4 * m * columns, out)


@function
def carry(n, state, total, change, written, target):
    """target = total * state + written, a row of n numbers.

    A decay near 1 cannot be told from its neighbours, which adds up over thousands of tokens. So the little that it
    takes away is added to what is written, and both to the state in one step.
    """
    for first in range(0, n, WIDTH):
        some, at = lanes(n - first), 4 * first
        x, new = load(state + at, some), load(written + at, some)
        store(x + (x * change + new) if abs(change) < HALF else x * total + new, target + at, some)


@function
def exponentials(keys, room):
    """From sums of log decays, `total`: their exp, and `change`: exp - 1 where that is small, elsewhere 1."""
    total, change = vector(room.total, keys), vector(room.change, keys)
    for m in range(keys):
        x = total[m]
        p = np.float32(0.008363140746951103) + x * np.float32(0.0013901280472055078)
        p = np.float32(0.16666577756404877) + x * (np.float32(0.04166685417294502) + x * p)
        p = x + x * x * (HALF + x * p)
        change[m] = p if abs(x) < NEAR else ONE
        total[m] = exp(x)


@function
def _fade_per_head(piece, room):
    """One decay for all keys. The sums of log decays start at either end, so that none is a difference of two."""
    n, keys = piece.n, piece.keys
    g, total = vector(room.log_decays, n), vector(room.total, keys)
    before, after = vector(room.before, n), vector(room.after, n)
    for i in range(n):
        g[i] = vector(piece.log_decay + 4 * i * piece.decay_row, 1)[0] if piece.kind == PER_HEAD else ZERO
    up, down = ZERO, ZERO
    for i in range(n):
        up += g[i]
        before[i] = up
        after[n - 1 - i] = down
        down += g[n - 1 - i]
    for i in range(n):
        before[i] = exp(before[i])
        after[i] = exp(after[i])
    for m in range(keys):
        total[m] = up
    exponentials(keys, room)
    for i in range(n):
        _scaled(keys, piece.q + 4 * i * piece.q_row, piece.scale * before[i], room.faded_queries + 4 * i * keys)
        _scaled(keys, piece.k + 4 * i * piece.k_row, after[i], room.faded_keys + 4 * i * keys)


@function
def _scaled(n, x, factor, out):
    """out = factor * x."""
    for first in range(0, n, WIDTH):
        some = lanes(n - first)
        store(load(x + 4 * first, some) * factor, out + 4 * first, some)


@function
def decays_between(piece, room):
    """The scale times the decay between tokens j <= i, into row i and column j; 0 above the diagonal of their blocks.

    A sum runs down each column: a log decay of any size, -inf included, leaves those exact that do not span it.
    """
    n, chunk, all_lanes = piece.n, room.chunk, lanes(BLOCK)
    g = vector(room.log_decays, n)
    for j in range(0, n, WIDTH):
        total = every(ZERO)
        for i in range(j, n):
            total = where(lanes(i - j), total + g[i], total)
            store(total, room.between + 4 * (i * chunk + j), all_lanes)
    for i in range(n):
        row, diagonal = vector(room.between + 4 * i * chunk, whole_blocks(i + 1)), i // BLOCK * BLOCK
        for j in range(row.size):
            row[j] = exp(row[j]) * piece.scale
        for lane in range(BLOCK):
            row[diagonal + lane] = row[diagonal + lane] if lane <= i - diagonal else ZERO


@function
def _fade_per_key(piece, room):
    """A decay for every key. Decays are multiplied up token by token; that over all of the piece is exp of a sum."""
    n, keys = piece.n, piece.keys
    for i in range(n):
        given, decay = vector(piece.log_decay + 4 * i * piece.decay_row, keys), vector(room.decays + 4 * i * keys, keys)
        for m in range(keys):
            decay[m] = exp(given[m])
    for first in range(0, keys, WIDTH):
        some, at = lanes(keys - first), 4 * first
        total, before, after = every(ZERO), every(piece.scale), every(ONE)
        for i in range(n):
            row = at + 4 * i * keys
            total = total + load(piece.log_decay + at + 4 * i * piece.decay_row, some)
            before = before * load(room.decays + row, some)
            query = load(piece.q + at + 4 * i * piece.q_row, some)
            store(query * piece.scale, room.queries + row, some)
            store(query * before, room.faded_queries + row, some)
        for down in range(n):
            i = n - 1 - down
            row = at + 4 * i * keys
            store(load(piece.k + at + 4 * i * piece.k_row, some) * after, room.faded_keys + row, some)
            after = after * load(room.decays + row, some)
        store(total, room.total + at, some)
    exponentials(keys, room)
