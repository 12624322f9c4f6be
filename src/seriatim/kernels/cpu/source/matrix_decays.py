"""From gradients in faded queries, keys and scores to those in queries, keys and log decays.

A log decay's gradient is the sum, over all that it fades, of the faded thing times the gradient there: the state before
the piece in the outputs from its token on and in the state after it, earlier tokens in later ones and in that state.
"""

import numpy as np

from seriatim.kernels.cpu.source.chunks import whole_blocks
from seriatim.kernels.cpu.source.lanes import every, lanes, load, nonzero, number, store, sum_of, where
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.lines import fill
from seriatim.kernels.cpu.source.matrix_pieces import PER_HEAD
from seriatim.kernels.cpu.source.simd import WIDTH

__all__ = ["finish_per_key", "unfade_per_head", "unfade_per_key", "unfade_row"]

ZERO, ONE = np.float32(0), np.float32(1)


@function
def unfade_per_head(piece, grads, room, more):
    """Gradients in queries and keys but for the scores, in the scores before decay, and of the log decays."""
    n, chunk = piece.n, room.chunk
    read, written = vector(room.before, n), vector(room.after, n)
    for i in range(n):
        read[i] = _scale(
            piece.keys, grads.q + 4 * i * grads.q_row, piece.scale * read[i], piece.q + 4 * i * piece.q_row
        )
        written[i] = _scale(piece.keys, grads.k + 4 * i * grads.k_row, written[i], piece.k + 4 * i * piece.k_row)
    found = vector(room.log_decays, n)
    fill(vector(more.columns, whole_blocks(n)), ZERO)
    for down in range(n):
        i = n - 1 - down
        row = 4 * i * chunk
        found[i] = unfade_row(i, more.columns, more.scores + row, room.scores + row, room.between + row)
    if piece.kind != PER_HEAD:
        return
    across, earlier, later = vector(more.across, piece.keys), ZERO, ZERO
    for m in range(piece.keys):
        earlier += across[m]
    for i in range(n):
        found[i] += earlier
        earlier += written[i]
    for down in range(n):
        i = n - 1 - down
        later += read[i]
        vector(grads.log_decay + 4 * i * grads.decay_row, 1)[0] = found[i] + later


@function
def _scale(n, x, factor, y):
    """x *= factor; the sum of x * y is returned."""
    total = every(ZERO)
    for first in range(0, n, WIDTH):
        some, at = lanes(n - first), 4 * first
        scaled = load(x + at, some) * factor
        store(scaled, x + at, some)
        total = total + scaled * load(y + at, some)
    return sum_of(total)


@function
def unfade_row(i, columns, grad_p, p, between):
    """Row i of dP is multiplied by its decays, after dP * P is added to `columns`; the sum of the columns before i."""
    total, whole = every(ZERO), lanes(WIDTH)
    for j in range(0, whole_blocks(i + 1), WIDTH):
        at = 4 * j
        gradient = load(grad_p + at, whole)
        column = load(columns + at, whole) + gradient * load(p + at, whole)
        store(column, columns + at, whole)
        store(gradient * load(between + at, whole), grad_p + at, whole)
        total = total + where(lanes(i - j), column, every(ZERO))
    return sum_of(total)


@function
def unfade_per_key(piece, grads, room, more):
    """Gradients in queries and keys but for the scores. To `across` is added what tokens give to the state after them.

    But for the last token, which no decay of the piece fades.
    """
    n, keys = piece.n, piece.keys
    for first in range(0, keys, WIDTH):
        some, at = lanes(keys - first), 4 * first
        before, after, across = every(piece.scale), every(ONE), load(more.across + at, some)
        for i in range(n):
            place = grads.q + at + 4 * i * grads.q_row
            before = before * load(room.decays + at + 4 * i * keys, some)
            store(load(place, some) * before, place, some)
        for down in range(n):
            i = n - 1 - down
            place = grads.k + at + 4 * i * grads.k_row
            gradient = load(place, some) * after
            store(gradient, place, some)
            if down > 0:
                across = across + gradient * load(piece.k + at + 4 * i * piece.k_row, some)
            after = after * load(room.decays + at + 4 * i * keys, some)
        store(across, more.across + at, some)


@function
def finish_per_key(piece, grads, room, more, empty):
    """The gradients of the log decays; then to queries and keys is added what each token gives to itself.

    What token t fades is `across`, and what tokens from t on read, less what they read of each other.
    """
    n, keys = piece.n, piece.keys
    for first in range(0, keys, WIDTH):
        some, at = lanes(keys - first), 4 * first
        across, later = load(more.across + at, some), every(ZERO)
        for down in range(n):
            i = n - 1 - down
            q, k = load(piece.q + at + 4 * i * piece.q_row, some), load(piece.k + at + 4 * i * piece.k_row, some)
            q_place, k_place = grads.q + at + 4 * i * grads.q_row, grads.k + at + 4 * i * grads.k_row
            grad_q, grad_k = load(q_place, some), load(k_place, some)
            later = later + q * grad_q
            if down > 0:
                later = later - k * grad_k
            found = where(nonzero(load(room.decays + at + 4 * i * keys, some)), later + across, every(ZERO))
            if empty and i == 0:
                found = every(ZERO)
            store(found, grads.log_decay + at + 4 * i * grads.decay_row, some)
            own = number(more.scores + 4 * i * (room.chunk + 1)) * piece.scale
            store(grad_q + own * k, q_place, some)
            store(grad_k + own * q, k_place, some)
