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

__all__ = ["advance", "answer", "keep", "retreat"]

ONE, MINUS_ONE, STEP = np.float32(1), np.float32(-1), np.int64(1)


@function
def answer(chunk, work, given, b, begin, tokens, h, column, values, o):
    """Outputs of some tokens, at most C, of which none but the first may empty the memory; work.state after them."""
    K, V, fading, block = work.K, work.V, given.log_decay.shape[0] > 0, 4 * CHUNK * CHUNK
    _begin(chunk, work, work.state, given, b, begin, tokens, h, column, values)
    scale_rows(C, C, chunk.inverse, chunk.inverse, chunk.beta, MINUS_ONE)
    multiply(C, V, C, chunk.inverse, C, STEP, work.right, V, work.written, V, REPLACE)
    queries = (chunk.first if work.per_key else chunk.pair) + 4 * CHUNK * K
    multiply(C, V, K, queries, K, STEP, work.state, V, work.right, V, REPLACE)
    if fading and not work.per_key:
        scale_rows(C, V, work.right, work.right, decays_before(chunk), ONE)
    for writer in range(work.W):
        scores, written = chunk.scores + (2 * writer + 1) * block, work.written + 4 * writer * CHUNK * V
        lower_times(C, V, scores, C, written, V, work.right, V, ADD)
    scatter(o, b, begin, tokens, h, work.right, V, column, values, ONE)
    if fading and not work.per_key:
        scale_rows(C, V, work.written, work.written, decays_after(chunk), ONE)
    _advance(chunk, work, work.state, work.state, fading)


@function
def keep(chunk, work, state, given, b, begin, tokens, h, column, values):
    """What `retreat` needs, of tokens that find the memory in this state."""
    block = 4 * CHUNK * work.V
    _begin(chunk, work, state, given, b, begin, tokens, h, column, values)
    multiply(C, work.V, C, chunk.inverse, C, STEP, work.right, work.V, chunk.errors, work.V, REPLACE)
    if work.W > 1:
        copy_numbers(chunk.errors + block, work.written + block, C * work.V)


@function
def advance(chunk, work, state, after, log_decay):
    """`after` = what becomes of a state, from what `keep` left."""
    fading, block = log_decay.shape[0] > 0, 4 * CHUNK * work.V
    scale_rows(C, work.V, work.written, chunk.errors, chunk.beta, MINUS_ONE)
    if work.W > 1:
        copy_numbers(work.written + block, chunk.errors + block, C * work.V)
    if fading and not work.per_key:
        scale_rows(C, work.V, work.written, work.written, decays_after(chunk), ONE)
    _advance(chunk, work, state, after, fading)


@function
def _advance(chunk, work, state, after, fading):
    """The same, from what is written; decays per head to the end of the chunk are in it already."""
    K, V = work.K, work.V
    if fading:
        scale_rows(K, V, after, state, chunk.total, ONE)
    elif after != state:
        copy_numbers(after, state, K * V)
    writers = chunk.last if work.per_key else chunk.pair
    multiply(K, V, work.W * C, writers, STEP, K, work.written, V, after, V, ADD)


@function
def _begin(chunk, work, state, given, b, begin, tokens, h, column, values):
    """Scores and decays; work.right: what the keys recall less the values; chunk.inverse = (1 + A b)^-1. Two writers
    have their values in work.written, and what the keys recall of these is part of work.right."""
    K, V, fading = work.K, work.V, given.log_decay.shape[0] > 0
    load_tokens(chunk, work, given, b, begin, tokens, h)
    if work.per_key:
        fade_per_key(chunk, work, tokens)
        if work.W > 1:
            second = work.written + 4 * CHUNK * V
            gather(second, V, given.v, b, begin, tokens, h, column, values, ONE)
            lower_times(C, V, chunk.scores + 8 * CHUNK * CHUNK, C, second, V, work.right, V, REPLACE)
        else:
            gather(work.right, V, given.v, b, begin, tokens, h, column, values, MINUS_ONE)
        multiply(C, V, K, chunk.first, K, STEP, state, V, work.right, V, ADD)
    else:
        # Decays of rows are left out of products with the state, and put into what comes of them.
        plain_scores(chunk, K, work.right)
        if fading:
            fade_per_head(chunk, K)
        else:
            fade_none(chunk)
        multiply(C, V, K, chunk.pair, K, STEP, state, V, work.right, V, REPLACE)
        subtract_values(work.right, V, decays_before(chunk), given.v, b, begin, tokens, h, column, values)
    for j in range(0, CHUNK, WIDTH):
        betas = load(chunk.beta + 4 * j, lanes(WIDTH)) * MINUS_ONE
        for i in range(CHUNK):
            at = 4 * (i * CHUNK + j)
            store(load(chunk.scores + at, lanes(WIDTH)) * betas, work.system + at, lanes(WIDTH))
    invert(C, work.system, C, chunk.inverse, C, work.spare)


@function
def retreat(chunk, start, work, grads, log_decay, tokens):
    """From the gradients in the outputs, in grads.outer, and in the state after the chunk, in grads.state, those in all
    else: grads.pair, .writers, .logs, .beta, the errors (in grads.outer), the second writer's values (in grads.rows,
    from row C on), and grads.state before the chunk.

    chunk: as `keep` left it, from the state `start`. outer is (grad e, grad o, u, values), C rows each.
    """
    K, V, outer, block, fading = work.K, work.V, grads.outer, 4 * CHUNK * work.V, log_decay.shape[0] > 0
    per_head, square = fading and not work.per_key, 4 * CHUNK * CHUNK
    written, solved = grads.rows, grads.rows + work.W * block
    writers = chunk.last if work.per_key else chunk.pair
    multiply(work.W * C, V, K, writers, K, STEP, grads.state, V, written, V, REPLACE)
    if per_head:
        scale_rows(C, V, written, written, decays_after(chunk), ONE)
    for writer in range(work.W):
        scores = chunk.scores + (2 * writer + 1) * square
        lower_transposed_times(C, V, scores, C, outer + block, V, written + writer * block, V, ADD)
    scale_rows(C, C, chunk.inverse, chunk.scores, chunk.beta, MINUS_ONE)
    invert(C, chunk.inverse, C, work.system, C, work.spare)
    lower_transposed_times(C, V, work.system, C, written, V, solved, V, REPLACE)
    scale_rows(C, V, outer, solved, chunk.beta, MINUS_ONE)
    scale_rows(C, V, outer + 2 * block, chunk.errors, chunk.beta, MINUS_ONE)
    if work.W > 1:
        lower_transposed_times(C, V, chunk.scores + 2 * square, C, outer, V, written + block, V, ADD)
        copy_numbers(outer + 3 * block, chunk.errors + block, C * V)
    betas = vector(grads.beta, C)
    for i in range(CHUNK):
        betas[i] = -dot(V, solved + 4 * i * V, chunk.errors + 4 * i * V)
    _outer_products(chunk, start, work, grads)
    if fading:
        totals = vector(grads.total, K)
        for i in range(K):
            totals[i] = vector(chunk.total, K)[i] * dot(V, grads.state + 4 * i * V, start + 4 * i * V)
        scale_rows(K, V, grads.state, grads.state, chunk.total, ONE)
    rows = outer
    if per_head:
        rows = grads.rows
        scale_rows(C, V, rows, outer, decays_before(chunk), ONE)
        scale_rows(C, V, rows + block, outer + block, decays_before(chunk), ONE)
    multiply(K, V, 2 * C, chunk.first if work.per_key else chunk.pair, STEP, K, rows, V, grads.state, V, ADD)
    _retreat_decays(chunk, work, grads, log_decay, tokens)


@function
def _outer_products(chunk, start, work, grads):
    """The gradients in the scores, in keys and queries faded from the chunk's start, in writers faded to its end."""
    K, V, other, width, sources = work.K, work.V, grads.outer_transposed, (2 + work.W) * C, work.W * C
    transpose(width, V, grads.outer, V, other, width)
    for writer in range(work.W):
        source, scores = other + 4 * (2 + writer) * CHUNK, grads.scores + 8 * writer * CHUNK * CHUNK
        multiply(2 * C, C, V, grads.outer, V, STEP, source, width, scores, C, REPLACE)
    multiply(K, 2 * C, V, start, V, STEP, other, width, grads.transposed, 2 * C, REPLACE)
    transpose(K, 2 * C, grads.transposed, 2 * C, grads.first, K)
    multiply(K, sources, V, grads.state, V, STEP, other + 8 * CHUNK, width, grads.transposed, sources, REPLACE)
    transpose(K, sources, grads.transposed, sources, grads.last, K)


@function
def _retreat_decays(chunk, work, grads, log_decay, tokens):
    """grads.pair and grads.logs, from what they are gradients of: scores, first, last and total."""
    K = work.K
    if work.per_key:
        gradients_per_key(chunk, work, grads, tokens)
        return
    if log_decay.shape[0] > 0:
        gradients_per_head(chunk, grads, K, work.spare)
    else:
        gradients_none(chunk, grads, K)
    multiply(2 * C, K, C, grads.scores, C, STEP, chunk.pair, K, grads.pair, K, ADD)
    multiply(C, K, 2 * C, grads.scores, STEP, C, chunk.pair, K, grads.pair, K, ADD)
