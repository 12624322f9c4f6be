"""Instructions that reduce some dimensions of an array, and those that fetch rows of a table.

A reduction's fields: its kind; a factor on the result, as the bits of a float32; the places of result and operand;
three sizes of the result, which is contiguous; the operand's strides along them; two sizes that are reduced; their
strides.

A fetch's fields: how many rows; numbers in a row; their kind; the places of result, table and indices; bytes between
the table's rows; how many there are; bytes between indices; whether negative ones count from the end.
"""

import numpy as np

from seriatim.kernels.cpu.source.step_codes import BYTE, HALF, OUTSIDE, REDUCTIONS
from seriatim.kernels.cpu.source.step_expressions import place_at
from seriatim.kernels.cpu.source.step_functions import exact
from seriatim.kernels.cpu.source.step_memory import (
    float_of_bits,
    read_byte,
    read_float,
    read_half,
    read_int,
    routine,
    word,
    write_float,
    write_int,
)

__all__ = ["fetch", "reduce"]

_SUM, _AMAX, _AMIN = (REDUCTIONS[name] for name in ("sum", "amax", "amin"))


@exact
def _together(kind, x, y):
    """NaN wins over any maximum and minimum, as in PyTorch."""
    if kind == _AMAX:
        return x if x > y or x != x else y
    if kind == _AMIN:
        return x if x < y or x != x else y
    return x * y


@routine
def _number(kind, out, place, rows, columns, row, column):
    """One number of the result."""
    if kind == _SUM:
        total = np.float32(0)
        for i in range(rows):
            if column == 4:
                for j in range(columns):
                    total += read_float(place + i * row + 4 * j)
            else:
                for j in range(columns):
                    total += read_float(place + i * row + j * column)
        write_float(out, total)
        return
    found = read_float(place)
    for i in range(rows):
        for j in range(columns):
            if i + j > 0:
                found = _together(kind, found, read_float(place + i * row + j * column))
    write_float(out, found)


@routine
def _line(kind, out, place, size, rows, columns, row, column):
    """A contiguous line of the result from contiguous lines of the operand."""
    for k in range(size):
        write_float(out + 4 * k, read_float(place + 4 * k))
    for i in range(rows):
        for j in range(columns):
            line = place + i * row + j * column
            if i + j == 0:
                continue
            if kind == _SUM:
                for k in range(size):
                    write_float(out + 4 * k, read_float(out + 4 * k) + read_float(line + 4 * k))
            else:
                for k in range(size):
                    write_float(out + 4 * k, _together(kind, read_float(out + 4 * k), read_float(line + 4 * k)))


@routine
def reduce(at, places, scratch, part, parts):
    """Does one of `parts` equal shares of the outermost dimension."""
    kind, factor = word(at, 3), float_of_bits(word(at, 4))
    out, x = place_at(at + 40, places, scratch), place_at(at + 56, places, scratch)
    d0, d1, d2 = word(at, 9), word(at, 10), word(at, 11)
    rows, columns, row, column = word(at, 15), word(at, 16), word(at, 17), word(at, 18)
    for i0 in range(d0 * part // parts, d0 * (part + 1) // parts):
        for i1 in range(d1):
            target, source = out + 4 * d2 * (i0 * d1 + i1), x + i0 * word(at, 12) + i1 * word(at, 13)
            if word(at, 14) == 4 and column != 4:
                _line(kind, target, source, d2, rows, columns, row, column)
            else:
                for k in range(d2):
                    _number(kind, target + 4 * k, source + k * word(at, 14), rows, columns, row, column)
            if factor != np.float32(1):
                for k in range(d2):
                    write_float(target + 4 * k, read_float(target + 4 * k) * factor)


@routine
def fetch(at, places, scratch, counters):
    """Copies rows of a table. An index out of range fetches nothing, and is told in the counters."""
    columns, kind = word(at, 4), word(at, 5)
    out, table = place_at(at + 48, places, scratch), place_at(at + 64, places, scratch)
    indices = place_at(at + 80, places, scratch)
    row, limit, apart, wraps = word(at, 12), word(at, 13), word(at, 14), word(at, 15)
    for i in range(word(at, 3)):
        index = read_int(indices + i * apart)
        if wraps != 0 and index < 0:
            index += limit
        if index < 0 or index >= limit:
            write_int(counters + 8 * OUTSIDE, 1)
            continue
        source, target = table + index * row, out + 4 * i * columns
        if kind == HALF:
            for j in range(columns):
                write_float(target + 4 * j, read_half(source + 2 * j))
        elif kind == BYTE:
            for j in range(columns):
                write_float(target + 4 * j, read_byte(source + j))
        else:
            for j in range(columns):
                write_float(target + 4 * j, read_float(source + 4 * j))
