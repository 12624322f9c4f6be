"""Instructions that apply elementwise functions to arrays of up to four dimensions, a strip of them at a time.

What is read is brought into registers, strips of the thread's own memory, in the order of the iteration, unless it lies
in that order in memory already; then the functions run on it where it is. A strip is some columns of a row, or some
rows.

Fields: the four sizes; rows and columns of a strip; bytes of a register; how many registers, constants, operands that
are read, functions, results that are written; then those. A constant: its slot, its kind, its bits. An operand or
result: its slot, how it is reached, its kind, its place, four strides in bytes. A function: its code, the slots of
result and arguments.
"""

from seriatim.kernels.cpu.source.simd import WIDTH
from seriatim.kernels.cpu.source.step_codes import BOOL, BYTE, DIRECT, FLOAT, HALF, INT, ONCE, SLOTS
from seriatim.kernels.cpu.source.step_elementwise import apply
from seriatim.kernels.cpu.source.step_memory import (
    copy_lanes,
    float_of_bits,
    lookup,
    read_bool,
    read_byte,
    read_float,
    read_half,
    read_int,
    routine,
    store_everywhere,
    widen_bytes,
    widen_halves,
    word,
    write_bool,
    write_float,
    write_half,
    write_int,
)

__all__ = ["express", "place_at"]

_HEADER, _CONSTANT, _OPERAND, _FUNCTION = 15, 3, 9, 5  # words


@lookup
def place_at(at, places, scratch):
    """The address of the place whose two words stand at an address."""
    base = word(at, 0)
    return (scratch if base == 0 else word(places, base)) + word(at, 1)


@routine
def _read_floats(place, row, column, rows, columns, out):
    for i in range(rows):
        source, target = place + i * row, out + 4 * i * columns
        if column == 4:
            for j in range(0, columns, WIDTH):
                copy_lanes(source + 4 * j, target + 4 * j, columns - j)
        elif column == 0:
            number = read_float(source)
            for j in range(0, columns, WIDTH):
                store_everywhere(target + 4 * j, number)
        else:
            for j in range(columns):
                write_float(target + 4 * j, read_float(source + j * column))


@routine
def _read_narrow(kind, place, row, column, rows, columns, out):
    for i in range(rows):
        source, target = place + i * row, out + 4 * i * columns
        if kind == BYTE and column == 1:
            for j in range(0, columns, WIDTH):
                widen_bytes(source + j, target + 4 * j, columns - j)
        elif kind == HALF and column == 2:
            for j in range(0, columns, WIDTH):
                widen_halves(source + 2 * j, target + 4 * j, columns - j)
        else:
            for j in range(columns):
                number = read_byte(source + j * column) if kind == BYTE else read_half(source + j * column)
                write_float(target + 4 * j, number)


@routine
def _read(kind, place, row, column, rows, columns, out):
    """Brings rows of numbers into a register, one after another. All but int64 become float32."""
    if kind == FLOAT:
        _read_floats(place, row, column, rows, columns, out)
        return
    is_narrow = (kind == BYTE) | (kind == HALF)
    if is_narrow:
        _read_narrow(kind, place, row, column, rows, columns, out)
        return
    for i in range(rows):
        for j in range(columns):
            source, index = place + i * row + j * column, i * columns + j
            if kind == INT:
                write_int(out + 8 * index, read_int(source))
            elif kind == BOOL:
                write_float(out + 4 * index, read_bool(source))


@routine
def _write(kind, place, row, column, rows, columns, source):
    """The inverse of `_read`."""
    for i in range(rows):
        for j in range(columns):
            target, index = place + i * row + j * column, i * columns + j
            if kind == FLOAT:
                write_float(target, read_float(source + 4 * index))
            elif kind == INT:
                write_int(target, read_int(source + 8 * index))
            elif kind == BOOL:
                write_bool(target, read_float(source + 4 * index))
            elif kind == HALF:
                write_half(target, read_float(source + 4 * index))


@routine
def _begin(at, places, scratch, count):
    """Addresses of the registers, and what is in them from the beginning: constants, operands that are one number."""
    for i in range(word(at, 10)):
        write_int(scratch + 8 * i, scratch + 8 * SLOTS + i * word(at, 9))
    here = at + 8 * _HEADER
    for _ in range(word(at, 11)):
        register = word(scratch, word(here, 0))
        for i in range(count):
            if word(here, 1) == INT:
                write_int(register + 8 * i, word(here, 2))
            else:
                write_float(register + 4 * i, float_of_bits(word(here, 2)))
        here += 8 * _CONSTANT
    for _ in range(word(at, 12)):
        if word(here, 1) == ONCE:
            register = word(scratch, word(here, 0))
            _read(word(here, 2), place_at(here + 24, places, scratch), 0, 0, 1, count, register)
        here += 8 * _OPERAND


@lookup
def _strip_of(here, places, scratch, i0, i1, row, column):
    """Where a strip of an operand begins."""
    along = i0 * word(here, 5) + i1 * word(here, 6) + row * word(here, 7) + column * word(here, 8)
    return place_at(here + 24, places, scratch) + along


@routine
def _do_strip(at, places, scratch, i0, i1, row, column, rows, columns):
    """Reads the operands, applies the functions, writes the results. The slots' addresses stand in front of scratch."""
    here = at + 8 * (_HEADER + _CONSTANT * word(at, 11))
    functions = here + 8 * _OPERAND * word(at, 12)
    results = functions + 8 * _FUNCTION * word(at, 13)
    end = results + 8 * _OPERAND * word(at, 14)
    while here < functions:
        if word(here, 1) != ONCE:
            place = _strip_of(here, places, scratch, i0, i1, row, column)
            if word(here, 1) == DIRECT:
                write_int(scratch + 8 * word(here, 0), place)
            else:
                _read(word(here, 2), place, word(here, 7), word(here, 8), rows, columns, word(scratch, word(here, 0)))
        here += 8 * _OPERAND
    here = results
    while here < end:
        if word(here, 1) == DIRECT:
            write_int(scratch + 8 * word(here, 0), _strip_of(here, places, scratch, i0, i1, row, column))
        here += 8 * _OPERAND
    here = functions
    while here < results:
        out, x = word(scratch, word(here, 1)), word(scratch, word(here, 2))
        apply(word(here, 0), rows * columns, out, x, word(scratch, word(here, 3)), word(scratch, word(here, 4)))
        here += 8 * _FUNCTION
    while here < end:
        if word(here, 1) != DIRECT:
            place = _strip_of(here, places, scratch, i0, i1, row, column)
            _write(word(here, 2), place, word(here, 7), word(here, 8), rows, columns, word(scratch, word(here, 0)))
        here += 8 * _OPERAND


@routine
def express(at, places, scratch, part, parts):
    """Does one of `parts` equal shares of the strips."""
    d1, d2, d3, high, wide = word(at, 4), word(at, 5), word(at, 6), word(at, 7), word(at, 8)
    down, across = (d2 + high - 1) // high, (d3 + wide - 1) // wide
    total = word(at, 3) * d1 * down * across
    _begin(at, places, scratch, min(high, d2) * min(wide, d3))
    for strip in range(total * part // parts, total * (part + 1) // parts):
        outer, row, column = strip // across // down, strip // across % down * high, strip % across * wide
        rows, columns = min(high, d2 - row), min(wide, d3 - column)
        _do_strip(at, places, scratch, outer // d1, outer % d1, row, column, rows, columns)
