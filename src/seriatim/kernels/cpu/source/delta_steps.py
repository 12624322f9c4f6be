"""A chunk of the delta rule, forward and backward.

See :mod:`delta_scan` for the mathematics, and :mod:`delta_layout` for the names of the matrices.
"""

import numpy as np

from seriatim.kernels.cpu.source.chunks import lower_times, lower_transposed_times
from seriatim.kernels.cpu.source.delta_decays import (
    decays_after,
    decays_before,
    fade_none,
    fade_per_head,
    fade_per_key,
    plain_scores,
)
from seriatim.kernels.cpu.source.delta_gradients import dot, gradients_none, gradients_per_head, gradients_per_key
from seriatim.kernels.cpu.source.delta_layout import CHUNK
from seriatim.kernels.cpu.source.delta_pieces import (
    ADD,
    REPLACE,
    C,
    copy_numbers,
    gather,
    load_tokens,
    scale_rows,
    scatter,
    subtract_values,
)
from seriatim.kernels.cpu.source.lanes import lanes, load, store
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.simd import WIDTH, multiply, transpose
from seriatim.kernels.cpu.source.triangular import invert

__all__ = ["advance", "keep", "read", "retreat"]

ONE, MINUS_ONE, STEP = np.float32(1), np.float32(-1), np.int64(1)


@function
def read(chunk, work, q, k, v, beta, log_decay, scale, b, begin, tokens, h, column, values, o):
    """Outputs of some tokens, at most C, of which none but the first may empty the memory; work.state after them."""
    K, V, fading, per_key = work.K, work.V, log_decay.shape[0] > 0, log_decay.shape[3] > 1
    _begin(chunk, work, work.state, q, k, v, beta, log_decay, scale, b, begin, tokens, h, column, values)
    scale_rows(C, C, chunk.inverse, chunk.inverse, chunk.beta, MINUS_ONE)
    multiply(C, V, C, chunk.inverse, C, STEP, work.right, V, work.written, V, REPLACE)
    queries = (chunk.first if per_key else chunk.pair) + 4 * CHUNK * K
    multiply(C, V, K, queries, K, STEP, work.state, V, work.right, V, REPLACE)
    if fading and not per_key:
        scale_rows(C, V, work.right, work.right, decays_before(chunk), ONE)
    lower_times(C, V, chunk.scores + 4 * CHUNK * CHUNK, C, work.written, V, work.right, V, ADD)
    scatter(o, b, begin, tokens, h, work.right, V, column, values, ONE)
    if fading and not per_key:
        scale_rows(C, V, work.written, work.written, decays_after(chunk), ONE)
    _advance(chunk, work, work.state, work.state, fading, per_key)


@function
def keep(chunk, work, state, q, k, v, beta, log_decay, scale, b, begin, tokens, h, column, values):
    """What `retreat` needs, of tokens that find the memory in this state."""
    _begin(chunk, work, state, q, k, v, beta, log_decay, scale, b, begin, tokens, h, column, values)
    multiply(C, work.V, C, chunk.inverse, C, STEP, work.right, work.V, chunk.errors, work.V, REPLACE)


@function
def advance(chunk, work, state, after, log_decay):
    """`after` = what becomes of a state, from what `keep` left."""
    fading, per_key = log_decay.shape[0] > 0, log_decay.shape[3] > 1
    scale_rows(C, work.V, work.written, chunk.errors, chunk.beta, MINUS_ONE)
    if fading and not per_key:
        scale_rows(C, work.V, work.written, work.written, decays_after(chunk), ONE)
    _advance(chunk, work, state, after, fading, per_key)


@function
def _advance(chunk, work, state, after, fading, per_key):
    """The same, from what is written; decays per head to the end of the chunk are in it already."""
    K, V = work.K, work.V
    if fading:
        scale_rows(K, V, after, state, chunk.total, ONE)
    elif after != state:
        copy_numbers(after, state, K * V)
    multiply(K, V, C, chunk.last if per_key else chunk.pair, STEP, K, work.written, V, after, V, ADD)


@function
def _begin(chunk, work, state, q, k, v, beta, log_decay, scale, b, begin, tokens, h, column, values):
    """Scores and decays; work.right: what the keys recall less the values; chunk.inverse = (1 + A b)^-1."""
    K, V, fading = work.K, work.V, log_decay.shape[0] > 0
    load_tokens(chunk, K, q, k, beta, log_decay, scale, b, begin, tokens, h)
    if log_decay.shape[3] > 1:
        fade_per_key(chunk, tokens, K)
        gather(work.right, V, v, b, begin, tokens, h, column, values, MINUS_ONE)
        multiply(C, V, K, chunk.first, K, STEP, state, V, work.right, V, ADD)
    else:
        # Decays of rows are left out of products with the state, and put into what comes of them.
        plain_scores(chunk, K, work.right)
        if fading:
            fade_per_head(chunk, K)
        else:
            fade_none(chunk)
        multiply(C, V, K, chunk.pair, K, STEP, state, V, work.right, V, REPLACE)
        subtract_values(work.right, V, decays_before(chunk), v, b, begin, tokens, h, column, values)
    for j in range(0, CHUNK, WIDTH):
        betas = load(chunk.beta + 4 * j, lanes(WIDTH)) * MINUS_ONE
        for i in range(CHUNK):
            at = 4 * (i * CHUNK + j)
            store(load(chunk.scores + at, lanes(WIDTH)) * betas, work.system + at, lanes(WIDTH))
    invert(C, work.system, C, chunk.inverse, C, work.spare)


@function
def retreat(chunk, start, work, grads, log_decay, tokens):
    """From the gradients in the outputs, in grads.outer, and in the state after the chunk, in grads.state, those in all
    else: grads.pair, .logs, .beta, the errors (in grads.outer), and grads.state before the chunk.

    chunk: as `keep` left it, from the state `start`. outer is (u, grad e, grad o), C rows each.
    """
    K, V, outer, block = work.K, work.V, grads.outer, 4 * CHUNK * work.V
    fading, per_key = log_decay.shape[0] > 0, log_decay.shape[3] > 1
    per_head = fading and not per_key
    written, solved = grads.rows, grads.rows + block
    multiply(C, V, K, chunk.last if per_key else chunk.pair, K, STEP, grads.state, V, written, V, REPLACE)
    if per_head:
        scale_rows(C, V, written, written, decays_after(chunk), ONE)
    lower_transposed_times(C, V, chunk.scores + 4 * CHUNK * CHUNK, C, outer + 2 * block, V, written, V, ADD)
    scale_rows(C, C, chunk.inverse, chunk.scores, chunk.beta, MINUS_ONE)
    invert(C, chunk.inverse, C, work.system, C, work.spare)
    lower_transposed_times(C, V, work.system, C, written, V, solved, V, REPLACE)
    scale_rows(C, V, outer, chunk.errors, chunk.beta, MINUS_ONE)
    scale_rows(C, V, outer + block, solved, chunk.beta, MINUS_ONE)
    betas = vector(grads.beta, C)
    for i in range(CHUNK):
        betas[i] = -dot(V, solved + 4 * i * V, chunk.errors + 4 * i * V)
    _outer_products(chunk, start, work, grads)
    if fading:
        totals = vector(grads.total, K)
        for i in range(K):
            totals[i] = vector(chunk.total, K)[i] * dot(V, grads.state + 4 * i * V, start + 4 * i * V)
        scale_rows(K, V, grads.state, grads.state, chunk.total, ONE)
    rows = outer + block
    if per_head:
        rows = grads.rows
        scale_rows(C, V, rows, outer + block, decays_before(chunk), ONE)
        scale_rows(C, V, rows + block, outer + 2 * block, decays_before(chunk), ONE)
    multiply(K, V, 2 * C, chunk.first if per_key else chunk.pair, STEP, K, rows, V, grads.state, V, ADD)
    _retreat_decays(chunk, work, grads, log_decay, tokens)


@function
def _outer_products(chunk, start, work, grads):
    """The gradients in the scores, in keys and queries faded from the chunk's start, and in keys faded to its end."""
    K, V, other, width = work.K, work.V, grads.outer_transposed, 3 * C
    transpose(width, V, grads.outer, V, other, width)
    multiply(2 * C, C, V, grads.outer + 4 * CHUNK * V, V, STEP, other, width, grads.scores, C, REPLACE)
    multiply(K, 2 * C, V, start, V, STEP, other + 4 * CHUNK, width, grads.transposed, 2 * C, REPLACE)
    transpose(K, 2 * C, grads.transposed, 2 * C, grads.first, K)
    multiply(K, C, V, grads.state, V, STEP, other, width, grads.transposed, C, REPLACE)
    transpose(K, C, grads.transposed, C, grads.last, K)


@function
def _retreat_decays(chunk, work, grads, log_decay, tokens):
    """grads.pair and grads.logs, from what they are gradients of: scores, first, last and total."""
    K = work.K
    if log_decay.shape[3] > 1:
        gradients_per_key(chunk, grads, tokens, K)
        return
    if log_decay.shape[0] > 0:
        gradients_per_head(chunk, grads, K, work.spare)
    else:
        gradients_none(chunk, grads, K)
    multiply(2 * C, K, C, grads.scores, C, STEP, chunk.pair, K, grads.pair, K, ADD)
    multiply(C, K, 2 * C, grads.scores, STEP, C, chunk.pair, K, grads.pair, K, ADD)
