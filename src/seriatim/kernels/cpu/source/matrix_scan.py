"""Kernels of matrix_scan. A work item is some heads of one row, and in the forward pass some columns of the values.

Its heads take turns: forward a chunk of tokens each, backward a cell of some chunks, whose states are computed again.
A chunk is read in the pieces between its resets: what a reset empties is never touched again, be it NaN.
"""

import numpy as np

from seriatim.kernels.cpu.source import matrix_layout
from seriatim.kernels.cpu.source.chunks import lower_times, piece_begin, piece_end
from seriatim.kernels.cpu.source.language import (
    Address,
    Bools2,
    Floats3,
    Floats4,
    Floats5,
    Index,
    Real,
    address,
    function,
    kernel,
    vector,
)
from seriatim.kernels.cpu.source.lines import copy, fill
from seriatim.kernels.cpu.source.matrix_gradients import GradientRoom, Gradients, piece_gradients
from seriatim.kernels.cpu.source.matrix_pieces import NO_DECAY, PER_HEAD, PER_KEY, Piece, Room, fade, score, write
from seriatim.kernels.cpu.source.places import places
from seriatim.kernels.cpu.source.simd import multiply

__all__ = ["backward", "forward"]

ZERO = np.float32(0)
forward_sizes, backward_sizes = function(matrix_layout.forward_sizes), function(matrix_layout.backward_sizes)


@kernel
def forward(
    item: Index,
    scratch: Address,
    q: Floats4,
    k: Floats4,
    v: Floats4,
    head_decay: Floats3,
    key_decay: Floats4,
    state: Floats4,
    reset: Bools2,
    scale: Real,
    chunk: Index,
    cell: Index,
    width: Index,
    group: Index,
    o: Floats4,
    last: Floats4,
    states: Floats5,
):
    """o (B, T, H, V) and last (B, H, K, V); states: those before every cell but the first, if there is room."""
    time, heads, keys, values = q.shape[1], q.shape[2], q.shape[3], v.shape[3]
    blocks, groups = (values + width - 1) // width, (heads + group - 1) // group
    column, first, b = item % blocks * width, item // blocks % groups * group, item // blocks // groups
    columns = min(width, values - column)
    room = _room(scratch, chunk, keys, columns)
    start = 0
    while start < time:
        stop = min(time, start + chunk)
        for head in range(first, min(heads, first + group)):
            S, S_row = address(last, b, head, 0, column) + 0, last.strides[2] // 4
            empty = start == 0 and state.shape[0] == 0
            if start == 0 and not empty:
                _copy(keys, columns, address(state, b, head, 0, column) + 0, state.strides[2] // 4, S, S_row)
            elif start > 0 and start % cell == 0 and states.shape[0] > 0:
                place = address(states, b, head, start // cell - 1, 0, column) + 0
                _copy(keys, columns, S, S_row, place, states.strides[3] // 4)
            begin = start
            while begin < stop:
                end = piece_end(reset, b, begin, stop)
                empty = empty or (reset.shape[0] > 0 and reset[b, begin])
                piece = _piece(q, k, v, head_decay, key_decay, scale, b, begin, end, head, column, columns)
                place = address(o, b, begin, head, column) + 0
                _read_and_write(piece, room, S, S_row, empty, place, o.strides[1] // 4)
                begin, empty = end, False
        start = stop


@kernel
def backward(
    item: Index,
    scratch: Address,
    q: Floats4,
    k: Floats4,
    v: Floats4,
    head_decay: Floats3,
    key_decay: Floats4,
    state: Floats4,
    reset: Bools2,
    states: Floats5,
    grad_o: Floats4,
    grad_last: Floats4,
    scale: Real,
    chunk: Index,
    cell: Index,
    group: Index,
    grad_q: Floats4,
    grad_k: Floats4,
    grad_v: Floats4,
    grad_head: Floats3,
    grad_key: Floats4,
    grad_state: Floats4,
):
    """The gradients of all inputs; grad_state (B, H, K, V) is also where that of the state is kept on the way back."""
    time, heads, keys, values = q.shape[1], q.shape[2], q.shape[3], v.shape[3]
    groups = (heads + group - 1) // group
    first, b = item % groups * group, item // groups
    room = _room(scratch, chunk, keys, values)
    more = _gradient_room(room.free, chunk, keys, values, cell // chunk)
    stop, known = time, grad_last.shape[0] > 0
    while stop > 0:
        start, live = (stop - 1) // cell * cell, known
        unread = start == 0 and state.shape[0] == 0
        for head in range(first, min(heads, first + group)):
            dS = address(grad_state, b, head) + 0
            if stop == time and known:
                _copy(keys, values, address(grad_last, b, head) + 0, grad_last.strides[2] // 4, dS, values)
            if start > 0:
                place = address(states, b, head, start // cell - 1) + 0
                _copy(keys, values, place, states.strides[3] // 4, more.states, values)
            elif not unread:
                _copy(keys, values, address(state, b, head) + 0, state.strides[2] // 4, more.states, values)
            _read_again(q, k, v, head_decay, key_decay, reset, b, head, room, more.states, start, stop, chunk, unread)
            live, end = known, stop
            while end > start:
                before = (end - 1) // chunk * chunk
                begin = piece_begin(reset, b, before, end)
                anew = reset.shape[0] > 0 and reset[b, begin]
                S = more.states + 4 * keys * values * ((before - start) // chunk)
                piece = _piece(q, k, v, head_decay, key_decay, scale, b, begin, end, head, 0, values)
                grads = _gradients(grad_o, grad_q, grad_k, grad_v, grad_head, grad_key, b, begin, head)
                piece_gradients(piece, grads, room, more, S, anew or (unread and begin == 0), dS, live)
                live, end = not anew, begin
            if start == 0 and not live:
                fill(vector(dS, keys * values), ZERO)
        stop, known = start, live


@function
def _read_again(q, k, v, head_decay, key_decay, reset, b, head, room, states, start, stop, chunk, empty):
    """Writes the states before the chunks of a cell behind that before the first one, which is there or `empty`."""
    keys, values = q.shape[3], v.shape[3]
    begin, now = start, states
    while begin < (stop - 1) // chunk * chunk:
        end = piece_end(reset, b, begin, (begin // chunk + 1) * chunk)
        after = states + 4 * keys * values * (begin // chunk - start // chunk + 1)
        empty = empty or (reset.shape[0] > 0 and reset[b, begin])
        piece = _piece(q, k, v, head_decay, key_decay, ZERO, b, begin, end, head, 0, values)
        fade(piece, room)
        write(piece, room, now, values, empty, after, values)
        begin, now, empty = end, after, False


@function
def _gradients(grad_o, grad_q, grad_k, grad_v, grad_head, grad_key, b, begin, head):
    """Where the gradients of the tokens from `begin` on lie."""
    log_decay, decay_row = 0, 0
    if grad_key.shape[0] > 0:
        log_decay, decay_row = address(grad_key, b, begin, head) + 0, grad_key.strides[1] // 4
    elif grad_head.shape[0] > 0:
        log_decay, decay_row = address(grad_head, b, begin, head) + 0, grad_head.strides[1] // 4
    return Gradients(
        address(grad_o, b, begin, head) + 0, grad_o.strides[1] // 4,
        address(grad_q, b, begin, head) + 0, grad_q.strides[1] // 4,
        address(grad_k, b, begin, head) + 0, grad_k.strides[1] // 4,
        address(grad_v, b, begin, head) + 0, grad_v.strides[1] // 4,
        log_decay, decay_row,
    )  # fmt: skip


@function
def _piece(q, k, v, head_decay, key_decay, scale, b, begin, end, head, column, columns):
    """Tokens begin to end - 1 of a head, and some columns of their values."""
    log_decay, decay_row, kind = 0, 0, NO_DECAY
    if key_decay.shape[0] > 0:
        log_decay, decay_row, kind = address(key_decay, b, begin, head) + 0, key_decay.strides[1] // 4, PER_KEY
    elif head_decay.shape[0] > 0:
        log_decay, decay_row, kind = address(head_decay, b, begin, head) + 0, head_decay.strides[1] // 4, PER_HEAD
    return Piece(
        end - begin, q.shape[3], columns,
        address(q, b, begin, head) + 0, q.strides[1] // 4,
        address(k, b, begin, head) + 0, k.strides[1] // 4,
        address(v, b, begin, head, column) + 0, v.strides[1] // 4,
        log_decay, decay_row, kind, scale,
    )  # fmt: skip


@function
def _room(scratch, chunk, keys, values):
    """The places in a thread's memory."""
    return Room(chunk, *places(scratch, forward_sizes(chunk, keys, values)))


@function
def _gradient_room(place, chunk, keys, values, chunks):
    """More of them, for gradients."""
    return GradientRoom(*places(place, backward_sizes(chunk, keys, values, chunks))[:-1])


@function
def _read_and_write(piece, room, S, S_row, empty, o, o_row):
    """o = (s b q) S + P v, S = T S + (a k)^T v."""
    n, keys, columns = piece.n, piece.keys, piece.values
    fade(piece, room)
    score(piece, room)
    if not empty:
        multiply(n, columns, keys, room.faded_queries, keys, 1, S, S_row, o, o_row, 0)
    lower_times(n, columns, room.scores, room.chunk, piece.v, piece.v_row, o, o_row, 0 if empty else 1)
    write(piece, room, S, S_row, empty, S, S_row)


@function
def _copy(rows, columns, source, source_row, target, target_row):
    """A matrix from one place to another."""
    for i in range(rows):
        copy(vector(target + 4 * i * target_row, columns), vector(source + 4 * i * source_row, columns))
