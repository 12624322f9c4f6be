"""Kernels of matrix_scan where the heads of a group share queries and keys. A work item is some heads of a group.

The products between tokens are made once for the heads of an item, and the gradients of queries and keys are summed
over them in place. A chunk is read in the pieces between its resets: what a reset empties is never touched again, be
it NaN. The state before every chunk is kept for the gradients.

Dimensions: B batch, T time, G groups, H heads, K key dim, V value dim, P parts of a group.
"""

from seriatim.kernels.cpu.source import shared_layout
from seriatim.kernels.cpu.source.chunks import piece_begin, piece_end
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
from seriatim.kernels.cpu.source.matrix_pieces import ZERO
from seriatim.kernels.cpu.source.places import places
from seriatim.kernels.cpu.source.shared_gradients import (
    GradientRoom,
    Gradients,
    begin_sums,
    finish_sums,
    head_gradients,
)
from seriatim.kernels.cpu.source.shared_pieces import Head, Room, Tokens, compare, read_and_write

__all__ = ["backward", "forward"]

forward_sizes, backward_sizes = function(shared_layout.forward_sizes), function(shared_layout.backward_sizes)


@kernel
def forward(
    item: Index,
    scratch: Address,
    q: Floats4,
    k: Floats4,
    v: Floats4,
    log_decay: Floats3,
    state: Floats4,
    reset: Bools2,
    scale: Real,
    chunk: Index,
    share: Index,
    o: Floats4,
    last: Floats4,
    states: Floats5,
):
    """o (B, T, H, V) and last (B, H, K, V) from q and k (B, T, G, K); states: those before every chunk but the first,
    if there is room. `share` heads make an item."""
    time, keys, values = q.shape[1], q.shape[3], v.shape[3]
    b, group, _, first, behind = _heads(item, q.shape[2], v.shape[2], share)
    room = _room(scratch, chunk, keys, values)
    start = 0
    while start < time:
        stop, begin = min(time, start + chunk), start
        while begin < stop:
            end = piece_end(reset, b, begin, stop)
            empty = _begins(reset, b, begin) or (begin == 0 and state.shape[0] == 0)
            tokens = _tokens(q, k, scale, values, b, begin, end, group)
            compare(tokens, room)
            for head in range(first, behind):
                S, S_row = _before(state, states, last, b, head, start, chunk)
                after, after_row = _after(states, last, b, head, stop, time, chunk)
                place = address(o, b, begin, head) + 0
                read_and_write(tokens, _head(v, log_decay, b, begin, head), room, S, S_row, empty,
                               after, after_row, end == stop, place, o.strides[1] // 4)  # fmt: skip
            begin = end
        start = stop


@kernel
def backward(
    item: Index,
    scratch: Address,
    q: Floats4,
    k: Floats4,
    v: Floats4,
    log_decay: Floats3,
    state: Floats4,
    reset: Bools2,
    states: Floats5,
    grad_o: Floats4,
    grad_last: Floats4,
    scale: Real,
    chunk: Index,
    share: Index,
    grad_q: Floats5,
    grad_k: Floats5,
    grad_v: Floats4,
    grad_decay: Floats3,
    grad_state: Floats4,
):
    """The gradients of all inputs, those of q and k (P, B, T, G, K) in parts; grad_state (B, H, K, V) is also where
    that of the state is kept on the way back."""
    time, keys, values = q.shape[1], q.shape[3], v.shape[3]
    b, group, part, first, behind = _heads(item, q.shape[2], v.shape[2], share)
    room = _room(scratch, chunk, keys, values)
    more = _gradient_room(room.free, chunk, keys, values)
    live = grad_last.shape[0] > 0
    if live:
        for head in range(first, behind):
            for m in range(keys):
                copy(vector(address(grad_state, b, head, m), values), vector(address(grad_last, b, head, m), values))
    stop = time
    while stop > 0:
        start, end = (stop - 1) // chunk * chunk, stop
        while end > start:
            begin = piece_begin(reset, b, start, end)
            anew = _begins(reset, b, begin)
            empty = anew or (begin == 0 and state.shape[0] == 0)
            tokens = _tokens(q, k, scale, values, b, begin, end, group)
            compare(tokens, room)
            begin_sums(tokens, room, more)
            for head in range(first, behind):
                S, S_row = _before(state, states, grad_state, b, head, start, chunk)
                grads = _gradients(grad_o, grad_v, grad_decay, b, begin, head)
                dS = address(grad_state, b, head) + 0
                head_gradients(tokens, _head(v, log_decay, b, begin, head), grads, room, more,
                               S, S_row, empty, dS, live)  # fmt: skip
            finish_sums(tokens, room, more, address(grad_q, part, b, begin, group) + 0, grad_q.strides[2] // 4,
                        address(grad_k, part, b, begin, group) + 0, grad_k.strides[2] // 4)  # fmt: skip
            live, end = not anew, begin
        stop = start
    if not live:
        for head in range(first, behind):
            fill(vector(address(grad_state, b, head), keys * values), ZERO)


@function
def _heads(item, groups, heads, share):
    """Of an item: the row of the batch, the group, which part of it, its first head and the one behind its last."""
    of_group = heads // groups
    parts = (of_group + share - 1) // share
    part, group, b = item % parts, item // parts % groups, item // parts // groups
    first = group * of_group + part * share
    return b, group, part, first, min(first + share, (group + 1) * of_group)


@function
def _begins(reset, b, t):
    """Whether the memory is emptied before token t."""
    return reset.shape[0] > 0 and reset[b, t]


@function
def _before(state, states, other, b, head, start, chunk):
    """Where the state before the chunk that begins at `start` lies, and how far apart its rows."""
    if start > 0 and states.shape[0] > 0:
        return address(states, b, head, start // chunk - 1) + 0, states.strides[3] // 4
    if start == 0 and state.shape[0] > 0:
        return address(state, b, head) + 0, state.strides[2] // 4
    return address(other, b, head) + 0, other.strides[2] // 4


@function
def _after(states, last, b, head, stop, time, chunk):
    """Where the state before token `stop`, at a chunk's end, is to be written, and how far apart its rows."""
    if stop < time and states.shape[0] > 0:
        return address(states, b, head, stop // chunk - 1) + 0, states.strides[3] // 4
    return address(last, b, head) + 0, last.strides[2] // 4


@function
def _tokens(q, k, scale, values, b, begin, end, group):
    """Tokens begin to end - 1 of a group."""
    return Tokens(
        end - begin, q.shape[3], values,
        address(q, b, begin, group) + 0, q.strides[1] // 4,
        address(k, b, begin, group) + 0, k.strides[1] // 4, scale,
    )  # fmt: skip


@function
def _head(v, log_decay, b, begin, head):
    """What the tokens from `begin` on give to a head."""
    place, row = 0, 0
    if log_decay.shape[0] > 0:
        place, row = address(log_decay, b, begin, head) + 0, log_decay.strides[1] // 4
    return Head(address(v, b, begin, head) + 0, v.strides[1] // 4, place, row)


@function
def _gradients(grad_o, grad_v, grad_decay, b, begin, head):
    """Where a head's gradients of the tokens from `begin` on lie."""
    place, row = 0, 0
    if grad_decay.shape[0] > 0:
        place, row = address(grad_decay, b, begin, head) + 0, grad_decay.strides[1] // 4
    return Gradients(
        address(grad_o, b, begin, head) + 0, grad_o.strides[1] // 4,
        address(grad_v, b, begin, head) + 0, grad_v.strides[1] // 4, place, row,
    )  # fmt: skip


@function
def _room(scratch, chunk, keys, values):
    """The places in a thread's memory."""
    return Room(chunk, *places(scratch, forward_sizes(chunk, keys, values)))


@function
def _gradient_room(place, chunk, keys, values):
    """More of them, for gradients."""
    return GradientRoom(*places(place, backward_sizes(chunk, keys, values))[:-1])
