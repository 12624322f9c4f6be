"""Kernels of delta_scan. A work item is one head of one row of the batch, some value columns wide, all of its time.

With S the state that a chunk of C tokens begins with, b = diag(beta), k and q the chunk's keys and queries faded from
its start, k' its keys faded to its end, and A and P the scores of keys and of queries with earlier keys:

    e = (1 + A b)^-1 (k S - v),    u = -b e,    o = q S + P u,    S' = d S + k'^T u

e is what a token's key recalls less its value, u what it writes. Backwards, with gradients written as differentials,

    y = (1 + b A)^-T (P^T do + k' dS'),    de = -b y,    dbeta = -y e,    dv = -de,    dS = d dS' + q^T do + k^T de,

dA = de u^T, dP = do u^T, dk = de S^T, dq = do S^T, dk' = u dS'^T. The backward pass takes some chunks at a time, the
last first: it computes them forward from the state that was kept there, and then backward. A reset divides a chunk into
pieces, which are read as chunks of their own.

With a transition that is diagonal plus rank one, what reads, r, is not what writes, w, and a second writer k has v:

    e = (1 + A b)^-1 (r S + A' v),    u = -b e,    o = q S + P u + P' v,    S' = d S + w'^T u + k'^T v,

b = -1, A and P the scores of r and q with w, A' and P' with k, and r reads before the decay of its token. Backwards dv
is P'^T do + A'^T de + k' dS', and the rest as above.

Dimensions: B batch, T time, H heads, K key dim, V value dim, C tokens of a chunk.
"""

import numpy as np

from seriatim.kernels.cpu.source.chunks import piece_begin, piece_end
from seriatim.kernels.cpu.source.delta_layout import CHUNK
from seriatim.kernels.cpu.source.delta_pieces import (
    C,
    Given,
    chunk_at,
    clear,
    gather,
    gradients_at,
    load_state,
    part,
    scatter,
    store_state,
    work_at,
)
from seriatim.kernels.cpu.source.delta_steps import advance, answer, keep, retreat
from seriatim.kernels.cpu.source.language import (
    Address,
    Bools2,
    Floats3,
    Floats4,
    Floats5,
    Index,
    Ints1,
    Real,
    function,
    kernel,
    vector,
)

__all__ = ["backward", "forward"]

ONE, MINUS_ONE = np.float32(1), np.float32(-1)


@kernel
def forward(
    item: Index,
    scratch: Address,
    q: Floats4,
    k: Floats4,
    v: Floats4,
    beta: Floats3,
    log_decay: Floats4,
    read: Floats4,
    write: Floats4,
    reset: Bools2,
    state: Floats4,
    scale: Real,
    width: Index,
    segment: Index,
    layout: Ints1,
    o: Floats4,
    last: Floats4,
    starts: Floats5,
):
    """o (B, T, H, V), last (B, H, K, V), and unless left out the state at every so many chunks, (B, H, n, K, V).

    An item has `width` value columns.
    """
    time, heads, keys = q.shape[1], q.shape[2], q.shape[3]
    given = Given(q, k, v, beta, log_decay, read, write, scale)
    b, h, column, values = part(item, heads, v.shape[3], width)
    chunk, work = chunk_at(scratch, layout, 0), work_at(scratch, layout, width, given)
    load_state(work, work.state, state, b, h, keys, column, values)
    for first in range(0, time, CHUNK):
        if starts.shape[0] > 0 and first % (segment * CHUNK) == 0:
            store_state(work, starts[b], h, first // (segment * CHUNK), work.state, keys, column, values)
        begin, stop = first, min(time, first + CHUNK)
        while begin < stop:
            end = piece_end(reset, b, begin, stop)
            if _begins(reset, b, begin):
                clear(work.state, work.K * work.V)
            answer(chunk, work, given, b, begin, end - begin, h, column, values, o)
            begin = end
    store_state(work, last, b, h, work.state, keys, column, values)


@kernel
def backward(
    item: Index,
    scratch: Address,
    grad_o: Floats4,
    grad_last: Floats4,
    q: Floats4,
    k: Floats4,
    v: Floats4,
    beta: Floats3,
    log_decay: Floats4,
    read: Floats4,
    write: Floats4,
    reset: Bools2,
    starts: Floats5,
    scale: Real,
    width: Index,
    segment: Index,
    layout: Ints1,
    grad_q: Floats5,
    grad_k: Floats5,
    grad_v: Floats4,
    grad_beta: Floats4,
    grad_log_decay: Floats5,
    grad_read: Floats5,
    grad_write: Floats5,
    grad_state: Floats4,
):
    """The gradients. Those of v and the state apart, they are apart along a first axis for each part of the columns."""
    time, heads, keys = q.shape[1], q.shape[2], q.shape[3]
    given = Given(q, k, v, beta, log_decay, read, write, scale)
    b, h, column, values = part(item, heads, v.shape[3], width)
    work, grads = work_at(scratch, layout, width, given), gradients_at(scratch, layout)
    load_state(work, grads.state, grad_last, b, h, keys, column, values)
    for number in range((time - 1) // (segment * CHUNK), -1, -1):
        opening = number * segment * CHUNK
        closing = min(time, opening + segment * CHUNK)
        load_state(work, chunk_at(scratch, layout, 0).start, starts[b], h, number, keys, column, values)
        for first in range(opening, closing, CHUNK):
            chunk, end = chunk_at(scratch, layout, (first - opening) // CHUNK), min(time, first + CHUNK)
            begin = piece_begin(reset, b, first, end)
            start = _start(chunk, work, reset, b, first, begin)
            keep(chunk, work, start, given, b, begin, end - begin, h, column, values)
            if end < closing:
                after = chunk_at(scratch, layout, (first - opening) // CHUNK + 1).start
                advance(chunk, work, start, after, log_decay)
        for first in range((closing - 1) // CHUNK * CHUNK, opening - 1, -CHUNK):
            chunk, stop = chunk_at(scratch, layout, (first - opening) // CHUNK), min(time, first + CHUNK)
            end = stop
            while end > first:
                begin = piece_begin(reset, b, first, end)
                tokens, start = end - begin, _start(chunk, work, reset, b, first, begin)
                if end < stop:  # the chunk's last piece is what was kept
                    keep(chunk, work, start, given, b, begin, tokens, h, column, values)
                gather(grads.outer + 4 * CHUNK * work.V, work.V, grad_o, b, begin, tokens, h, column, values, ONE)
                retreat(chunk, start, work, grads, log_decay, tokens)
                _write(b, begin, tokens, h, column, values, column // width, work, grads, scale,
                       grad_q, grad_k, grad_v, grad_beta, grad_log_decay, grad_read, grad_write)  # fmt: skip
                if _begins(reset, b, begin):
                    clear(grads.state, work.K * work.V)
                end = begin
    store_state(work, grad_state, b, h, grads.state, keys, column, values)


@function
def _begins(reset, b, t):
    """Whether the memory is emptied before token t."""
    return reset.shape[0] > 0 and reset[b, t]


@function
def _start(chunk, work, reset, b, first, begin):
    """The state that the piece of a chunk finds which begins at token `begin`: the chunk's, or none."""
    if begin == first and not _begins(reset, b, begin):
        return chunk.start
    clear(work.state, work.K * work.V)
    return work.state


@function
def _write(
    b, begin, tokens, h, column, values, slot, work, grads, scale,
    grad_q, grad_k, grad_v, grad_beta, grad_log_decay, grad_read, grad_write,
):  # fmt: skip
    """The gradients of some tokens."""
    K, V, keys, betas, logs = work.K, work.V, grad_k.shape[4], vector(grads.beta, C), vector(grads.logs, C)
    scatter(grad_q[slot], b, begin, tokens, h, grads.pair + 4 * CHUNK * K, K, 0, keys, scale)
    if work.W > 1:
        scatter(grad_read[slot], b, begin, tokens, h, grads.pair, K, 0, keys, ONE)
        scatter(grad_write[slot], b, begin, tokens, h, grads.writers, K, 0, keys, ONE)
        scatter(grad_k[slot], b, begin, tokens, h, grads.writers + 4 * CHUNK * K, K, 0, keys, ONE)
        scatter(grad_v, b, begin, tokens, h, grads.rows + 4 * CHUNK * V, V, column, values, ONE)
    else:
        scatter(grad_k[slot], b, begin, tokens, h, grads.pair, K, 0, keys, ONE)
        scatter(grad_v, b, begin, tokens, h, grads.outer, V, column, values, MINUS_ONE)
        for i in range(tokens):
            grad_beta[slot, b, begin + i, h] = betas[i]
    if work.per_key:
        scatter(grad_log_decay[slot], b, begin, tokens, h, grads.logs, K, 0, keys, ONE)
    elif grad_log_decay.shape[0] > 0:
        for i in range(tokens):
            grad_log_decay[slot, b, begin + i, h, 0] = logs[i]
