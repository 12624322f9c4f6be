"""Which queries of a block see which keys: documents, windows, what is carried, and scores hidden accordingly.

Scores are S (keys, QUERIES) as in bands.py. `bounds` is the address of two lines of `keys` numbers: from which and to
which query (exclusive) every key is seen, counted from the first query of the block.
"""

import numpy as np

from seriatim.kernels.cpu.source.attention_layout import QUERIES
from seriatim.kernels.cpu.source.bands import LINE
from seriatim.kernels.cpu.source.language import function, vector
from seriatim.kernels.cpu.source.lines import fill
from seriatim.kernels.cpu.source.simd import WIDTH

__all__ = ["clear_around", "first_key", "hide", "length", "slots_seen", "tokens_seen", "vectors"]

ZERO, NOTHING = np.float32(0), np.float32(-np.inf)


@function
def length(lengths, b, time):
    """How many tokens of row b are real."""
    return lengths[b] if lengths.shape[0] > 0 else time


@function
def first_key(reset, b, t, window):
    """The first token that query t sees."""
    first = max(0, t + 1 - window)
    if reset.shape[0] == 0:
        return first
    begin = t
    while begin > first and not reset[b, begin]:
        begin -= 1
    return begin


@function
def tokens_seen(bounds, keys, reset, b, t, rows, begin, count, window, end):
    """Writes from which and to which query (exclusive), counted from t, each of `count` tokens from `begin` is seen.

    `end` is where the document of the last one ends; where that of the token before the first ends is returned.
    """
    low, high = vector(bounds, keys), vector(bounds + 4 * keys, keys)
    for i in range(count - 1, -1, -1):
        low[i], high[i] = max(0, begin + i - t), max(0, min(end, begin + i + window) - t)
        if reset.shape[0] > 0 and reset[b, begin + i]:
            end = begin + i
    return end


@function
def slots_seen(bounds, keys, until, b, t, begin, count, end):
    """The same for what is carried; whether anything is seen is returned."""
    low, high = vector(bounds, keys), vector(bounds + 4 * keys, keys)
    seen = False
    for i in range(count):
        low[i], high[i] = 0, max(0, min(end, until[b, begin + i]) - t)
        seen = seen or high[i] > ZERO
    return seen


@function
def vectors(bounds, keys, i):
    """The queries that see key i: from and to (exclusive), and both rounded outwards to whole vectors."""
    low, high = int(vector(bounds, keys)[i]), int(vector(bounds + 4 * keys, keys)[i])
    high = max(low, high)
    return low, high, low // WIDTH * WIDTH, (high + WIDTH - 1) // WIDTH * WIDTH


@function
def hide(s, bounds, keys, i):
    """Makes scores of key i -inf that share a vector with those of queries that see it."""
    low, high, begin, end = vectors(bounds, keys, i)
    fill(vector(s + LINE * i + 4 * begin, low - begin), NOTHING)
    fill(vector(s + LINE * i + 4 * high, end - high), NOTHING)


@function
def clear_around(s, bounds, keys, i):
    """Makes what lies around those vectors 0. Where they begin, and how many numbers they hold."""
    _, _, begin, end = vectors(bounds, keys, i)
    fill(vector(s + LINE * i, begin), ZERO)
    fill(vector(s + LINE * i + 4 * end, QUERIES - end), ZERO)
    return begin, end - begin
