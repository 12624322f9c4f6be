r"""Kernels of selective_scan. A work item is all of time for one row of the batch and some channels, WIDTH at a time.

With a_t = exp(delta_t A), u_t = delta_t x_t and G_t the gradient that reaches h_t from later tokens:

    h_t = a_t h_{t-1} + u_t B_t,    y_t = h_t C_t + D x_t

    g_t = G_t + grad_y_t C_t,  G_{t-1} = a_t g_t,  grad_B_t = g_t u_t,  grad_C_t = grad_y_t h_t,
    grad_u_t = g_t B_t,  grad_A = sum_t delta_t G_{t-1} h_{t-1},  grad_delta_t = A G_{t-1} h_{t-1} + x_t grad_u_t

Rounding grows with the number of tokens that a number lives through. So what the tokens of a chunk give is summed up
apart from what came before it, which is decayed by exp(A times the sum of the chunk's steps), once a chunk.

Where `signed` is not 0, a_t = 2 exp(delta_t A) - 1, and in grad_A and grad_delta_t G_{t-1} becomes (a_t + 1) g_t. A
product of such decays is no exponential: what came before the chunk is then decayed token by token.

Dimensions: B batch, T time, E channels, N state values. The state values of WIDTH channels are N vectors.
"""

from typing import NamedTuple

import numpy as np

from seriatim.kernels.cpu.source.channels import (
    VECTOR,
    clear_rows,
    close_chunk,
    copy_rows,
    decay,
    fused,
    is_moderate,
    read_rates,
    read_rows,
    signed_decay,
)
from seriatim.kernels.cpu.source.lanes import WIDTH, every, lanes, load, number, store
from seriatim.kernels.cpu.source.language import (
    Address,
    Bools2,
    Floats1,
    Floats2,
    Floats3,
    Floats4,
    Index,
    address,
    function,
    kernel,
)
from seriatim.kernels.cpu.source.selective_gradients import (
    Chunk,
    Given,
    Parts,
    places,
    read_chunk,
    replay,
    retreat,
    write_chunk,
)
from seriatim.kernels.cpu.source.simd import transpose
from seriatim.kernels.cpu.source.streams import begins, prefetch, prefetch_to_write

__all__ = ["backward", "forward"]

AHEAD = 8  # tokens: so early memory is asked for what a token needs
ZERO = np.float32(0)


@kernel
def forward(
    item: Index,
    scratch: Address,
    x: Floats3,
    delta: Floats3,
    A: Floats2,
    B: Floats3,
    C: Floats3,
    D: Floats1,
    state: Floats3,
    reset: Bools2,
    tokens: Index,
    width: Index,
    signed: Index,
    y: Floats3,
    last: Floats3,
    starts: Floats3,
):
    """y, the last state, and the state before every chunk of `tokens` tokens: starts (B, chunks, N for each channel).

    An item is `width` channels, a multiple of WIDTH. scratch: 4 N WIDTH.
    """
    time, channels, states = x.shape[1], x.shape[2], A.shape[1]
    items = (channels + width - 1) // width
    b, block = item // items, item % items
    size = VECTOR * states
    memory = States(scratch, scratch + size, scratch + 2 * size, scratch + 3 * size)
    for first in range(block * width, min(channels, (block + 1) * width), WIDTH):
        count = min(WIDTH, channels - first)
        some = lanes(count)
        steepest = read_rates(memory.rates, address(A, first), A.strides[0] // 4, count, states)
        if state.shape[0] > 0:
            read_rows(memory.h, address(state, b, first), state.strides[1] // 4, count, states)
        else:
            clear_rows(memory.h, states)
        skip = load(address(D, first), some) if D.shape[0] > 0 else every(ZERO)
        for index in range((time + tokens - 1) // tokens):
            if starts.shape[0] > 0:
                copy_rows(address(starts, b, index, first * states), memory.h, states)
            copy_rows(memory.before, memory.h, states)
            clear_rows(memory.local, states)
            span = every(ZERO)
            for t in range(index * tokens, min(time, (index + 1) * tokens)):
                prefetch(address(delta, b, t + AHEAD, first))
                prefetch(address(x, b, t + AHEAD, first))
                prefetch_to_write(address(y, b, t + AHEAD, first))
                if begins(reset, b, t):
                    clear_rows(memory.h, 3 * states)
                    span = every(ZERO)
                step, value = load(address(delta, b, t, first), some), load(address(x, b, t, first), some)
                u, moderate, span = step * value, is_moderate(step, steepest), span + step
                ports, passed = (address(B, b, t), address(C, b, t)), skip * value
                if signed:
                    total = _advance_signed(memory.h, memory.rates, states, step, moderate, u, ports, passed)
                else:
                    total = _advance(memory, states, step, moderate, u, ports, passed)
                store(total, address(y, b, t, first), some)
            if not signed:
                close_chunk(memory.h, memory.local, memory.before, memory.rates, states, span, steepest)
        transpose(states, count, memory.h, WIDTH, address(last, b, first), last.strides[1] // 4)


class States(NamedTuple):
    """Places in the scratch memory, of N vectors each."""

    rates: int  # A log2(e)
    h: int  # the state
    local: int  # what of it comes from the tokens of this chunk
    before: int  # the state before the chunk


@function
def _advance(memory, states, step, moderate, u, ports, total):
    """h = 2^(step rates) h + u B; returns total + h C. The ports are B and C."""
    whole, (B, C) = lanes(WIDTH), ports
    for n in range(states):
        at = VECTOR * n
        h, local = load(memory.h + at, whole), load(memory.local + at, whole)
        a, new = decay(step, load(memory.rates + at, whole), moderate), u * number(B + 4 * n)
        h = fused(a, h, new)
        store(h, memory.h + at, whole)
        store(fused(a, local, new), memory.local + at, whole)
        total = fused(h, number(C + 4 * n), total)
    return total


@function
def _advance_signed(place, rates, states, step, moderate, u, ports, total):
    """The same with the signed decay, of the state alone."""
    whole, (B, C) = lanes(WIDTH), ports
    for n in range(states):
        at = VECTOR * n
        a = signed_decay(step, load(rates + at, whole), moderate)
        h = fused(a, load(place + at, whole), u * number(B + 4 * n))
        store(h, place + at, whole)
        total = fused(h, number(C + 4 * n), total)
    return total


@kernel
def backward(
    item: Index,
    scratch: Address,
    grad_y: Floats3,
    grad_last: Floats3,
    x: Floats3,
    delta: Floats3,
    A: Floats2,
    B: Floats3,
    C: Floats3,
    D: Floats1,
    reset: Bools2,
    starts: Floats3,
    tokens: Index,
    width: Index,
    signed: Index,
    grad_x: Floats3,
    grad_delta: Floats3,
    grad_state: Floats3,
    grad_A: Floats3,
    grad_D: Floats2,
    grad_B: Floats4,
    grad_C: Floats4,
):
    """grad_x, grad_delta, grad_state; of grad_A (B, E, N), grad_D (B, E) and grad_B, grad_C (items, B, T, N) the parts.

    Chunks are read from the last to the first, WIDTH of the state values at a time: forwards once, to have their states
    again, then backwards. scratch: (3 N + 5 tokens + 2 tokens WIDTH + 5 WIDTH) WIDTH.
    """
    time, channels, states = x.shape[1], x.shape[2], A.shape[1]
    items = (channels + width - 1) // width
    b, block = item // items, item % items
    memory = places(scratch, states, tokens)
    given, parts = Given(x, delta, grad_y, B, C, reset, starts), Parts(grad_x, grad_delta, grad_B, grad_C)
    for first in range(block * width, min(channels, (block + 1) * width), WIDTH):
        count = min(WIDTH, channels - first)
        steepest = read_rates(memory.rates, address(A, first), A.strides[0] // 4, count, states)
        read_rows(memory.carry, address(grad_last, b, first), grad_last.strides[1] // 4, count, states)
        clear_rows(memory.sums, states)
        skip = load(address(D, first), lanes(count)) if D.shape[0] > 0 else every(ZERO)
        grad_skip = every(ZERO)
        for index in range((time - 1) // tokens, -1, -1):
            begin = index * tokens
            chunk = Chunk(b, block, index, begin, min(tokens, time - begin), first, count, first == block * width)
            read_chunk(memory, given, chunk)
            for n in range(0, states, WIDTH):
                replay(memory, given, chunk, n, min(WIDTH, states - n), steepest, signed)
                retreat(memory, given, parts, chunk, n, min(WIDTH, states - n), tokens, steepest, signed)
            grad_skip = grad_skip + write_chunk(memory, parts, chunk, skip)
        transpose(states, count, memory.carry, WIDTH, address(grad_state, b, first), grad_state.strides[1] // 4)
        transpose(states, count, memory.sums, WIDTH, address(grad_A, b, first), grad_A.strides[1] // 4)
        store(grad_skip, address(grad_D, b, first), lanes(count))
