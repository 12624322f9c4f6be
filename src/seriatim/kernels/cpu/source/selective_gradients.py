"""The pieces of selective_scan's backward pass: a chunk of tokens for a vector of channels.

It is read forwards once, to have its states again, then backwards. The equations stand in selective_scan.py.
"""

from typing import Any, NamedTuple

import numpy as np

from seriatim.kernels.cpu.source.channels import (
    VECTOR,
    clear_rows,
    close_chunk,
    copy_rows,
    decay,
    fused,
    is_moderate,
    lane_sums,
    signed_decay,
)
from seriatim.kernels.cpu.source.lanes import WIDTH, every, lanes, load, number, store
from seriatim.kernels.cpu.source.language import address, function
from seriatim.kernels.cpu.source.streams import begins, prefetch, prefetch_to_write

__all__ = ["Chunk", "Given", "Parts", "places", "read_chunk", "replay", "retreat", "write_chunk"]

ZERO, LN2 = np.float32(0), np.float32(0.6931471805599453)


class Given(NamedTuple):
    """What backward reads."""

    x: Any
    delta: Any
    grad_y: Any
    B: Any
    C: Any
    reset: Any
    starts: Any


class Parts(NamedTuple):
    """What it writes, token by token."""

    grad_x: Any
    grad_delta: Any
    grad_write: Any  # of B
    grad_read: Any  # of C


class Chunk(NamedTuple):
    """Some tokens of row b from `begin` on, and `count` channels from `first` on."""

    b: int
    block: int
    index: int
    begin: int
    length: int
    first: int
    count: int
    is_first: bool  # of its item's vectors, whose sums for grad_B and grad_C are added up


class Memory(NamedTuple):
    """Places in the scratch memory."""

    rates: int  # N vectors: A log2(e)
    carry: int  # N: the gradient that reaches the state from later tokens
    sums: int  # N: grad_A so far
    steps: int  # one for each token of a chunk: delta
    values: int  # x
    above: int  # grad_y
    grad_u: int
    grad_step: int
    decays: int  # WIDTH for each token: exp(delta A), for WIDTH of the N
    after: int  # WIDTH for each token: the states after it
    products: int  # WIDTH: what is to be added up over channels for grad_B; WIDTH: for grad_C
    local: int  # WIDTH: what of carry comes from the tokens of this chunk
    later: int  # WIDTH: carry before the chunk
    local_sums: int  # WIDTH: what this chunk adds to sums


@function
def places(scratch, states, tokens):
    line, block, chunk, square = VECTOR * states, VECTOR * tokens, VECTOR * tokens * WIDTH, VECTOR * WIDTH
    steps = scratch + 3 * line
    decays = steps + 5 * block
    products = decays + 2 * chunk
    return Memory(
        scratch, scratch + line, scratch + 2 * line,
        steps, steps + block, steps + 2 * block, steps + 3 * block, steps + 4 * block,
        decays, decays + chunk, products, products + 2 * square, products + 3 * square, products + 4 * square,
    )  # fmt: skip


@function
def read_chunk(memory, given, chunk):
    """Brings what is read of all tokens into one place, without gaps."""
    some, whole = lanes(chunk.count), lanes(WIDTH)
    for i in range(chunk.length):
        t, at = chunk.begin + i, VECTOR * i
        store(load(address(given.delta, chunk.b, t, chunk.first), some), memory.steps + at, whole)
        store(load(address(given.x, chunk.b, t, chunk.first), some), memory.values + at, whole)
        store(load(address(given.grad_y, chunk.b, t, chunk.first), some), memory.above + at, whole)
    clear_rows(memory.grad_u, chunk.length)
    clear_rows(memory.grad_step, chunk.length)


@function
def write_chunk(memory, parts, chunk, skip):
    """grad_x and grad_delta of a chunk; returns what it adds to grad_D."""
    some, whole, grad_skip = lanes(chunk.count), lanes(WIDTH), every(ZERO)
    for i in range(chunk.length):
        t, at = chunk.begin + i, VECTOR * i
        step, value = load(memory.steps + at, whole), load(memory.values + at, whole)
        grad_u, above = load(memory.grad_u + at, whole), load(memory.above + at, whole)
        grad_skip = fused(above, value, grad_skip)
        store(fused(step, grad_u, skip * above), address(parts.grad_x, chunk.b, t, chunk.first), some)
        grad_step = every(LN2) * load(memory.grad_step + at, whole)
        store(fused(value, grad_u, grad_step), address(parts.grad_delta, chunk.b, t, chunk.first), some)
    return grad_skip


@function
def _start(given, chunk, n, states):
    """Where the state before a chunk lies, from state value n on."""
    return address(given.starts, chunk.b, chunk.index, chunk.first * states) + VECTOR * n


@function
def replay(memory, given, chunk, n, some, steepest, signed):
    """The decays and the states of a chunk, for `some` of the state values from n on."""
    whole, size, rates = lanes(WIDTH), VECTOR * some, memory.rates + VECTOR * n
    before = _start(given, chunk, n, given.B.shape[2])
    for i in range(chunk.length):
        step, decays, after = load(memory.steps + VECTOR * i, whole), memory.decays + i * size, memory.after + i * size
        u, B = step * load(memory.values + VECTOR * i, whole), address(given.B, chunk.b, chunk.begin + i, n)
        if begins(given.reset, chunk.b, chunk.begin + i):
            _write(after, some, u, B)
        else:
            _replay_token(after, before, decays, rates, some, step, is_moderate(step, steepest), u, B, signed)
        before = after


@function
def _replay_token(after, before, decays, rates, some, step, moderate, u, B, signed):
    """h = 2^(step rates) h + u B, or with the signed decay; the decays are kept."""
    whole = lanes(WIDTH)
    for n in range(some):
        at = VECTOR * n
        rate = load(rates + at, whole)
        a = signed_decay(step, rate, moderate) if signed else decay(step, rate, moderate)
        store(a, decays + at, whole)
        store(fused(a, load(before + at, whole), u * number(B + 4 * n)), after + at, whole)


@function
def _write(after, some, u, B):
    """h = u B."""
    for n in range(some):
        store(u * number(B + 4 * n), after + VECTOR * n, lanes(WIDTH))


@function
def retreat(memory, given, parts, chunk, n, some, tokens, steepest, signed):
    """The gradients of a chunk from those of the next, for `some` of the state values from n on."""
    whole, size, span = lanes(WIDTH), VECTOR * some, every(ZERO)
    carry, rates, sums = memory.carry + VECTOR * n, memory.rates + VECTOR * n, memory.sums + VECTOR * n
    copy_rows(memory.later, carry, some)
    clear_rows(memory.local, some)
    clear_rows(memory.local_sums, some)
    for i in range(chunk.length - 1, -1, -1):
        b, t, at, first = chunk.b, chunk.begin + i, VECTOR * i, chunk.first
        if n == 0:
            _fetch(given, parts, b, t, first, tokens)
        step, above = load(memory.steps + at, whole), load(memory.above + at, whole)
        u, B, C = step * load(memory.values + at, whole), address(given.B, b, t, n), address(given.C, b, t, n)
        span, after = span + step, memory.after + i * size
        if begins(given.reset, b, t):
            grad_u, grad_step = _retreat_first(memory, carry, after, some, above, u, B, C), every(ZERO)
            clear_rows(carry, some)
            clear_rows(memory.local, some)
            clear_rows(memory.later, some)
            span = every(ZERO)
        else:
            before = after - size if i > 0 else _start(given, chunk, n, given.B.shape[2])
            decays = memory.decays + i * size
            grad_u, grad_step = _retreat_token(
                memory, carry, rates, decays, before, after, some, above, step, u, B, C, signed
            )
        store(load(memory.grad_u + at, whole) + grad_u, memory.grad_u + at, whole)
        store(load(memory.grad_step + at, whole) + grad_step, memory.grad_step + at, whole)
        _add(address(parts.grad_write, chunk.block, b, t, n), lane_sums(memory.products), some, chunk.is_first)
        reads = lane_sums(memory.products + VECTOR * WIDTH)
        _add(address(parts.grad_read, chunk.block, b, t, n), reads, some, chunk.is_first)
    if not signed:
        close_chunk(carry, memory.local, memory.later, rates, some, span, steepest)
    for i in range(some):
        at = VECTOR * i
        store(load(sums + at, whole) + load(memory.local_sums + at, whole), sums + at, whole)


@function
def _fetch(given, parts, b, t, first, tokens):
    """Asks memory for what is written next, and for what the chunk before reads."""
    prefetch_to_write(address(parts.grad_x, b, t, first))
    prefetch_to_write(address(parts.grad_delta, b, t, first))
    prefetch(address(given.delta, b, t - tokens, first))
    prefetch(address(given.x, b, t - tokens, first))
    prefetch(address(given.grad_y, b, t - tokens, first))


@function
def _retreat_token(memory, carry, rates, decays, before, after, some, above, step, u, B, C, signed):
    """A token's gradients. What is read of a state value is read before anything is written: that is faster."""
    whole, grad_u, grad_step = lanes(WIDTH), every(ZERO), every(ZERO)
    for i in range(some):
        at = VECTOR * i
        g, local, total = load(carry + at, whole), load(memory.local + at, whole), load(memory.local_sums + at, whole)
        rate, a = load(rates + at, whole), load(decays + at, whole)
        h, old = load(after + at, whole), load(before + at, whole)
        g, local = fused(above, number(C + 4 * i), g), fused(above, number(C + 4 * i), local)
        grad_u = fused(g, number(B + 4 * i), grad_u)
        store(u * g, memory.products + at, whole)
        store(above * h, memory.products + VECTOR * WIDTH + at, whole)
        earlier = a * g
        store(earlier, carry + at, whole)
        store(a * local, memory.local + at, whole)
        g = (earlier + g if signed else earlier) * old
        grad_step = fused(rate, g, grad_step)
        store(fused(step, g, total), memory.local_sums + at, whole)
    return grad_u, grad_step


@function
def _retreat_first(memory, carry, after, some, above, u, B, C):
    """The same where the token begins anew: nothing goes on to earlier ones."""
    whole, grad_u = lanes(WIDTH), every(ZERO)
    for i in range(some):
        at = VECTOR * i
        g = fused(above, number(C + 4 * i), load(carry + at, whole))
        grad_u = fused(g, number(B + 4 * i), grad_u)
        store(u * g, memory.products + at, whole)
        store(above * load(after + at, whole), memory.products + VECTOR * WIDTH + at, whole)
    return grad_u


@function
def _add(place, sums, some, is_first):
    """Adds sums over channels to those of the item's earlier channels."""
    if not is_first:
        sums = sums + load(place, lanes(some))
    store(sums, place, lanes(some))
