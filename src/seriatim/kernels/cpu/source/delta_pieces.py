"""What the delta rule's kernels are put together from: their memory, and reading and writing tokens and states.

Every matrix is an address; its rows are whole vectors long and follow each other, unless said otherwise. Distances are
in float32s.
"""

from collections import namedtuple

import numpy as np

from seriatim.kernels.cpu.source.delta_layout import CHUNK, CHUNK_FIELDS, GRADIENT_FIELDS, WORK_FIELDS, padded
from seriatim.kernels.cpu.source.functions import exp
from seriatim.kernels.cpu.source.language import address, function, vector
from seriatim.kernels.cpu.source.lines import add, copy, fill

__all__ = [
    "ADD",
    "REPLACE",
    "C",
    "Given",
    "chunk_at",
    "clear",
    "copy_numbers",
    "gather",
    "gradients_at",
    "load_state",
    "load_tokens",
    "part",
    "scale_rows",
    "scatter",
    "store_state",
    "subtract_values",
    "work_at",
]

ZERO, ONE, MINUS_ONE = np.float32(0), np.float32(1), np.float32(-1)
# Constants as numba's plain integers: it compiles a function anew for every literal that it is called with.
C, ADD, REPLACE = np.int64(CHUNK), np.int64(1), np.int64(0)

Given = namedtuple("Given", ["q", "k", "v", "beta", "log_decay", "read", "write", "scale"])  # arrays as in delta_scan
Chunk = namedtuple("Chunk", CHUNK_FIELDS)  # addresses
# Addresses; how long the rows are; how many writers there are; whether there is a decay for every key feature.
Work = namedtuple("Work", [*WORK_FIELDS, "K", "V", "W", "per_key"])
Gradients = namedtuple("Gradients", GRADIENT_FIELDS)  # addresses
_padded = function(padded)
_WORK, _GRADIENTS = len(CHUNK_FIELDS) + 1, len(CHUNK_FIELDS) + 1 + len(WORK_FIELDS)  # where they begin in a layout


@function
def chunk_at(scratch, layout, number):
    """The memory of a chunk."""
    x = scratch + 4 * number * layout[_WORK - 1]
    return Chunk(
        x + 4 * layout[0], x + 4 * _writers(layout, 1, 0), x + 4 * layout[2], x + 4 * layout[3], x + 4 * layout[4],
        x + 4 * layout[5], x + 4 * layout[6], x + 4 * layout[7], x + 4 * layout[8], x + 4 * layout[9],
        x + 4 * layout[10], x + 4 * layout[11],
    )  # fmt: skip


@function
def _writers(layout, place, pair):
    """Where writers lie: in a place of their own, or if that is empty where the keys of a pair do."""
    return layout[place] if layout[place + 1] > layout[place] else layout[pair]


@function
def work_at(scratch, layout, width, given):
    """The memory to work in for so many value columns, and the kind of the work: `read` is empty where keys read."""
    writers = np.int64(2) if given.read.shape[0] > 0 else np.int64(1)
    x, at = scratch, layout[_WORK:]
    return Work(
        x + 4 * at[0], x + 4 * at[1], x + 4 * at[2], x + 4 * at[3], x + 4 * at[4],
        _padded(given.k.shape[3]), _padded(width), writers, given.log_decay.shape[3] > 1 or writers > 1,
    )  # fmt: skip


@function
def gradients_at(scratch, layout):
    """The memory of gradients."""
    x, at = scratch, layout[_GRADIENTS:]
    return Gradients(
        x + 4 * at[0], x + 4 * at[1], x + 4 * at[2], x + 4 * at[3], x + 4 * at[4], x + 4 * at[5], x + 4 * at[6],
        x + 4 * at[7], x + 4 * at[8], x + 4 * _writers(at, 9, 8), x + 4 * at[10], x + 4 * at[11], x + 4 * at[12],
        x + 4 * at[13],
    )  # fmt: skip


@function
def part(item, heads, values, width):
    """Of an item: the row of the batch, the head, the first value column, how many there are."""
    parts = (values + width - 1) // width
    column = item % parts * width
    return item // parts // heads, item // parts % heads, column, min(width, values - column)


@function
def clear(x, count):
    """So many numbers become 0."""
    fill(vector(x, count), ZERO)


@function
def copy_numbers(out, x, count):
    """out = x, so many numbers."""
    copy(vector(out, count), vector(x, count))


@function
def scale_rows(rows, columns, out, x, factors, sign):
    """out[i, :] = sign * factors[i] * x[i, :]."""
    by = vector(factors, rows)
    for i in range(rows):
        factor = sign * by[i]
        source, target = vector(x + 4 * i * columns, columns), vector(out + 4 * i * columns, columns)
        for c in range(columns):
            target[c] = factor * source[c]


@function
def gather(out, width, x, b, begin, tokens, h, column, columns, factor):
    """out (C, width) = factor * x[b, begin : begin + tokens, h, column : column + columns], 0 where out is larger."""
    for i in range(tokens):
        source, target = vector(address(x, b, begin + i, h, column), columns), vector(out + 4 * i * width, width)
        for c in range(columns):
            target[c] = factor * source[c]
        for c in range(columns, width):
            target[c] = ZERO
    clear(out + 4 * tokens * width, (CHUNK - tokens) * width)


@function
def scatter(out, b, begin, tokens, h, x, width, column, columns, factor):
    """out[b, begin : begin + tokens, h, column : column + columns] = factor * x[:tokens, :columns], x (C, width)."""
    for i in range(tokens):
        target, source = vector(address(out, b, begin + i, h, column), columns), vector(x + 4 * i * width, width)
        for c in range(columns):
            target[c] = factor * source[c]


@function
def load_tokens(chunk, work, given, b, begin, tokens, h):
    """Who reads and writes in a chunk, beta and decays; tokens behind the end write nothing and fade nothing."""
    K, half, betas, decays = work.K, 4 * CHUNK * work.K, vector(chunk.beta, C), vector(chunk.decays, C)
    keys, log_decay = given.k.shape[3], given.log_decay
    gather(chunk.pair + half, K, given.q, b, begin, tokens, h, 0, keys, given.scale)
    if work.W > 1:
        gather(chunk.pair, K, given.read, b, begin, tokens, h, 0, keys, ONE)
        gather(chunk.writers, K, given.write, b, begin, tokens, h, 0, keys, ONE)
        gather(chunk.writers + half, K, given.k, b, begin, tokens, h, 0, keys, ONE)
        fill(betas, MINUS_ONE)
    else:
        gather(chunk.pair, K, given.k, b, begin, tokens, h, 0, keys, ONE)
        for i in range(CHUNK):
            betas[i] = given.beta[b, begin + i, h] if i < tokens else ZERO
    if work.per_key:
        gather(chunk.decays, K, log_decay, b, begin, tokens, h, 0, keys, ONE)
        # The decay over the chunk is no product of those of its tokens: their errors would add up from chunk to chunk.
        clear(chunk.total, K)
        for i in range(tokens):
            add(vector(chunk.total, K), vector(chunk.decays + 4 * i * K, K))
        _exponentials(chunk.total, K)
        _exponentials(chunk.decays, C * K)
    elif log_decay.shape[0] > 0:
        for i in range(CHUNK):
            decays[i] = log_decay[b, begin + i, h, 0] if i < tokens else ZERO


@function
def _exponentials(x, count):
    """x = exp(x), so many numbers."""
    numbers = vector(x, count)
    for i in range(count):
        numbers[i] = exp(numbers[i])


@function
def subtract_values(right, width, factors, v, b, begin, tokens, h, column, columns):
    """right (C, width) = diag(factors) right - v[b, begin : begin + tokens, h, column : column + columns]."""
    by = vector(factors, C)
    for i in range(tokens):
        factor = by[i]
        source = vector(address(v, b, begin + i, h, column), columns)
        target = vector(right + 4 * i * width, width)
        for c in range(columns):
            target[c] = factor * target[c] - source[c]


@function
def load_state(work, out, states, i, j, keys, column, values):
    """out (K, V) = states[i, j, :keys, column : column + values] and 0 around it; 0 if there are none."""
    clear(out, work.K * work.V)
    if states.shape[0] > 0:
        for feature in range(keys):
            source = vector(address(states, i, j, feature, column), values)
            copy(vector(out + 4 * feature * work.V, values), source)


@function
def store_state(work, out, i, j, x, keys, column, values):
    """out[i, j, :keys, column : column + values] = x (K, V)."""
    for feature in range(keys):
        copy(vector(address(out, i, j, feature, column), values), vector(x + 4 * feature * work.V, values))
