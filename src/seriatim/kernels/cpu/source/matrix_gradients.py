"""The gradients of a piece, given those of its outputs and of the state after it.

With the names of :mod:`matrix_pieces`, do the gradients of the outputs and dS those of the state after the piece:
dP = do v^T, and before decays dv = P^T do + (a k) dS, d(s b q) = do S^T, d(a k) = v dS^T, dS = T dS + (s b q)^T do.
"""

from typing import NamedTuple

import numpy as np

from seriatim.kernels.cpu.source.chunks import lower_product, lower_times, lower_transposed_times
from seriatim.kernels.cpu.source.key_decays import block_gradients
from seriatim.kernels.cpu.source.lanes import every, lanes, load, sum_of
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.lines import fill
from seriatim.kernels.cpu.source.matrix_decays import finish_per_key, unfade_per_head, unfade_per_key
from seriatim.kernels.cpu.source.matrix_pieces import NO_DECAY, PER_KEY, carry, fade, score
from seriatim.kernels.cpu.source.simd import WIDTH, multiply, transpose

__all__ = ["GradientRoom", "Gradients", "piece_gradients"]

ZERO = np.float32(0)


class Gradients(NamedTuple):
    """Where the gradients of a piece's tokens lie: of its outputs, to be read, and of its inputs, to be written."""

    o: int
    o_row: int
    q: int
    q_row: int
    k: int
    k_row: int
    v: int
    v_row: int
    log_decay: int
    decay_row: int


class GradientRoom(NamedTuple):
    """Places of working memory beside those of :class:`matrix_pieces.Room`."""

    scores: int
    values_transposed: int
    outputs_transposed: int
    transposed: int
    across: int
    columns: int
    states: int


@function
def piece_gradients(piece, grads, room, more, S, empty, dS, live):
    """Writes the gradients of the piece's inputs, and turns dS (K, V) into the gradients of the state before it.

    S: that state, row by row, unless it is `empty`. dS counts only if `live`.
    """
    n, keys, values, chunk = piece.n, piece.keys, piece.values, room.chunk
    keep = 1 if live else 0
    fade(piece, room)
    score(piece, room)
    transpose(n, values, piece.v, piece.v_row, more.values_transposed, chunk)
    lower_product(n, values, grads.o, grads.o_row, more.values_transposed, chunk, more.scores, chunk)
    if live:
        multiply(n, values, keys, room.faded_keys, keys, 1, dS, values, grads.v, grads.v_row, 0)
    lower_transposed_times(n, values, room.scores, chunk, grads.o, grads.o_row, grads.v, grads.v_row, keep)
    _through(piece, more, chunk, dS, more.values_transposed, live, grads.k, grads.k_row)
    if not empty:
        transpose(n, values, grads.o, grads.o_row, more.outputs_transposed, chunk)
    _through(piece, more, chunk, S, more.outputs_transposed, not empty, grads.q, grads.q_row)
    if piece.kind != NO_DECAY:
        _across(piece, room, more, S, dS, live and not empty)
    if not empty:
        _read_back(piece, grads, room, dS, live)
    if piece.kind == PER_KEY:
        unfade_per_key(piece, grads, room, more)
        block_gradients(n, keys, piece.q, piece.q_row, piece.k, piece.k_row, room.decays, keys, more.scores, chunk,
                        piece.scale, grads.q, grads.q_row, grads.k, grads.k_row)  # fmt: skip
        finish_per_key(piece, grads, room, more, empty)
    else:
        unfade_per_head(piece, grads, room, more)
        lower_times(n, keys, more.scores, chunk, piece.k, piece.k_row, grads.q, grads.q_row, 1)
        lower_transposed_times(n, keys, more.scores, chunk, piece.q, piece.q_row, grads.k, grads.k_row, 1)


@function
def _through(piece, more, chunk, state, transposed, present, out, out_row):
    """out (n, K) = the state (K, V) times tokens (V, n), transposed; 0 if there is no state."""
    n, keys, values = piece.n, piece.keys, piece.values
    if present:
        multiply(keys, n, values, state, values, 1, transposed, chunk, more.transposed, chunk, 0)
        transpose(keys, n, more.transposed, chunk, out, out_row)
    else:
        for i in range(n):
            fill(vector(out + 4 * i * out_row, keys), ZERO)


@function
def _across(piece, room, more, S, dS, present):
    """`across` (K) = the sum over values of S T dS, which every log decay fades; 0 unless both are `present`."""
    keys, values = piece.keys, piece.values
    across, total = vector(more.across, keys), vector(room.total, keys)
    if not present:
        fill(across, ZERO)
        return
    for m in range(keys):
        part = every(ZERO)
        for first in range(0, values, WIDTH):
            some, at = lanes(values - first), 4 * (m * values + first)
            part = part + load(S + at, some) * load(dS + at, some)
        across[m] = total[m] * sum_of(part)


@function
def _read_back(piece, grads, room, dS, live):
    """The gradient of the state before the piece: dS = T dS + (s b q)^T do, or without dS if that is not `live`."""
    n, keys, values = piece.n, piece.keys, piece.values
    if not live or piece.kind == NO_DECAY:
        keep = 1 if live else 0
        multiply(keys, values, n, room.faded_queries, 1, keys, grads.o, grads.o_row, dS, values, keep)
        return
    multiply(keys, values, n, room.faded_queries, 1, keys, grads.o, grads.o_row, room.written, values, 0)
    total, change = vector(room.total, keys), vector(room.change, keys)
    for m in range(keys):
        row = 4 * m * values
        carry(values, dS + row, total[m], change[m], room.written + row, dS + row)
