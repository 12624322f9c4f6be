"""Products of matrices with few rows, as a model that reads one token makes them.

`_dots` computes C = A B^T where both A's and B's rows are contiguous: B is the weights, whose rows are read from memory
once, all rows of A against a few of them at a time. B may be bfloat16.

Fields of the instruction, C = alpha A B + beta D for every pair of batch indices: its kind; the kind of B's numbers;
two sizes of the batch; rows, columns and inner length; A's place and strides along both batch dimensions, rows and
inner dimension; B's place and strides, inner dimension and columns; C's place, it is contiguous; D's place, base -1 for
none, and strides like C's; alpha and beta as bits of float32. Strides are in bytes.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.simd import WIDTH, VectorAccess, first_lanes, multiply
from seriatim.kernels.cpu.source.step_codes import DOTS, HALF
from seriatim.kernels.cpu.source.step_expressions import place_at
from seriatim.kernels.cpu.source.step_memory import float_of_bits, read_float, routine, word, write_float

__all__ = ["fma", "lane_sum", "multiply_rows"]

_FLOAT, _INDEX, _HALF = ir.FloatType(), ir.IntType(64), ir.IntType(16)
_VECTOR = ir.VectorType(_FLOAT, WIDTH)


class _Halves(VectorAccess):
    """Loads of bfloat16, widened to float32."""

    def load(self, place, masked=False):
        builder, narrow, wide = self.builder, ir.VectorType(_HALF, WIDTH), ir.VectorType(ir.IntType(32), WIDTH)
        place = builder.bitcast(place, narrow.as_pointer())
        if self.mask is None or not masked:
            found = builder.load(place, align=2)
        else:
            kind = ir.FunctionType(narrow, [narrow.as_pointer(), ir.IntType(32), self.mask.type, narrow])
            load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{WIDTH}i16.p0")
            found = builder.call(load, [place, ir.Constant(ir.IntType(32), 2), self.mask, ir.Constant(narrow, None)])
        shifted = builder.shl(builder.zext(found, wide), ir.Constant(wide, [16] * WIDTH))
        return builder.bitcast(shifted, _VECTOR)


def _block(columns: int, rows: int, half: bool):
    """A function that computes C[:rows, :columns], the products of `rows` rows of A and `columns` rows of B."""

    @intrinsic
    def block(typing, inner, a, a_row, b, b_row, c, c_row):
        """Places are addresses, distances bytes; `inner` is the length of all rows."""
        signature = types.void(*[types.int64] * 7)

        def generate(context, builder, _, arguments):
            inner, a, a_row, b, b_row, c, c_row = arguments
            pointer = (_HALF if half else _FLOAT).as_pointer()
            starts_a = [_at(builder, a, a_row, i, _FLOAT.as_pointer()) for i in range(rows)]
            starts_b = [_at(builder, b, b_row, j, pointer) for j in range(columns)]
            sums = {}
            for key in [(i, j) for i in range(rows) for j in range(columns)]:
                sums[key] = cgutils.alloca_once(builder, _VECTOR)
                builder.store(ir.Constant(_VECTOR, None), sums[key])
            whole = builder.and_(inner, ir.Constant(_INDEX, -WIDTH))

            def add(k, lanes):
                masked = lanes is not None
                floats = VectorAccess(builder, lanes)
                weights = (_Halves if half else VectorAccess)(builder, lanes)
                left = [floats.load(builder.gep(start, [k]), masked) for start in starts_a]
                for j, start in enumerate(starts_b):
                    right = weights.load(builder.gep(start, [k]), masked)
                    for i in range(rows):
                        total = fma(builder, left[i], right, builder.load(sums[i, j]))
                        builder.store(total, sums[i, j])

            with cgutils.for_range(builder, builder.sdiv(whole, ir.Constant(_INDEX, WIDTH))) as loop:
                add(builder.mul(loop.index, ir.Constant(_INDEX, WIDTH)), None)
            left_over = builder.sub(inner, whole)
            with builder.if_then(builder.icmp_signed("!=", left_over, ir.Constant(_INDEX, 0))):
                add(whole, first_lanes(builder, left_over))
            for (i, j), total in sums.items():
                row = _at(builder, c, c_row, i, _FLOAT.as_pointer())
                builder.store(lane_sum(builder, builder.load(total)), builder.gep(row, [ir.Constant(_INDEX, j)]))
            return context.get_dummy_value()

        return signature, generate

    return block


def _at(builder, base, distance, times, pointer):
    return builder.inttoptr(builder.add(base, builder.mul(distance, ir.Constant(_INDEX, times))), pointer)


def fma(builder, x, y, z):
    """x y + z."""
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32"), [x, y, z])


def lane_sum(builder, vector):
    """The sum of a vector's numbers, by halves."""
    small, width = ir.IntType(32), WIDTH
    add = builder.fadd if vector.type.element == _FLOAT else builder.add
    while width > 1:
        width //= 2
        low, high = (
            ir.Constant(ir.VectorType(small, width), [start + i for i in range(width)]) for start in (0, width)
        )
        other = ir.Constant(vector.type, ir.Undefined)
        halves = [builder.shuffle_vector(vector, other, lanes) for lanes in (low, high)]
        vector = add(*halves)
    return builder.extract_element(vector, ir.Constant(small, 0))


def _dots(half: bool):
    """The function that computes all of C."""
    one_8, one_1 = _block(8, 1, half), _block(1, 1, half)
    four_4, two_4, one_4 = (_block(4, rows, half) for rows in (4, 2, 1))
    four_1, two_1 = (_block(1, rows, half) for rows in (4, 2))

    @routine
    def few(rows, inner, a, a_row, b, b_row, c, c_row):
        i = 0
        while rows - i >= 4:
            four_1(inner, a + i * a_row, a_row, b, b_row, c + i * c_row, c_row)
            i += 4
        if rows - i >= 2:
            two_1(inner, a + i * a_row, a_row, b, b_row, c + i * c_row, c_row)
            i += 2
        if rows - i >= 1:
            one_1(inner, a + i * a_row, a_row, b, b_row, c + i * c_row, c_row)

    @routine
    def many(rows, inner, a, a_row, b, b_row, c, c_row):
        i = 0
        while rows - i >= 4:
            four_4(inner, a + i * a_row, a_row, b, b_row, c + i * c_row, c_row)
            i += 4
        if rows - i >= 2:
            two_4(inner, a + i * a_row, a_row, b, b_row, c + i * c_row, c_row)
            i += 2
        if rows - i >= 1:
            one_4(inner, a + i * a_row, a_row, b, b_row, c + i * c_row, c_row)

    @routine
    def dots(rows, columns, inner, a, a_row, b, b_row, c, c_row):
        j = 0
        if rows == 1:
            while columns - j >= 8:
                one_8(inner, a, a_row, b + j * b_row, b_row, c + 4 * j, c_row)
                j += 8
        while columns - j >= 4:
            many(rows, inner, a, a_row, b + j * b_row, b_row, c + 4 * j, c_row)
            j += 4
        while j < columns:
            few(rows, inner, a, a_row, b + j * b_row, b_row, c + 4 * j, c_row)
            j += 1

    return dots


_float_dots, _half_dots = _dots(False), _dots(True)


@routine
def _finish(at, places, scratch, i0, i1, c, first, last):
    """C = alpha C + beta D, in some of the columns."""
    alpha, beta = float_of_bits(word(at, 30)), float_of_bits(word(at, 31))
    for m in range(word(at, 7)):
        line = c + 4 * m * word(at, 8)
        if alpha != np.float32(1):
            for n in range(first, last):
                write_float(line + 4 * n, alpha * read_float(line + 4 * n))
        if word(at, 24) < 0:
            continue
        other = place_at(at + 192, places, scratch) + i0 * word(at, 26) + i1 * word(at, 27) + m * word(at, 28)
        apart = word(at, 29)
        if apart == 4:
            for n in range(first, last):
                write_float(line + 4 * n, read_float(line + 4 * n) + beta * read_float(other + 4 * n))
        else:
            for n in range(first, last):
                write_float(line + 4 * n, read_float(line + 4 * n) + beta * read_float(other + n * apart))


@routine
def _columns(at, places, scratch, i0, i1, first, last):
    """Some columns of one product of the batch."""
    rows, columns, inner = word(at, 7), word(at, 8), word(at, 9)
    a = place_at(at + 80, places, scratch) + i0 * word(at, 12) + i1 * word(at, 13)
    b = place_at(at + 128, places, scratch) + i0 * word(at, 18) + i1 * word(at, 19) + first * word(at, 21)
    c = place_at(at + 176, places, scratch) + 4 * (i0 * word(at, 6) + i1) * rows * columns
    if word(at, 3) != DOTS:
        a_row, a_column = word(at, 14) // 4, word(at, 15) // 4
        multiply(rows, last - first, inner, a, a_row, a_column, b, word(at, 20) // 4, c + 4 * first, columns, 0)
    elif word(at, 4) == HALF:
        _half_dots(rows, last - first, inner, a, word(at, 14), b, word(at, 21), c + 4 * first, 4 * columns)
    else:
        _float_dots(rows, last - first, inner, a, word(at, 14), b, word(at, 21), c + 4 * first, 4 * columns)
    _finish(at, places, scratch, i0, i1, c, first, last)


@routine
def multiply_rows(at, places, scratch, part, parts):
    """Does one of `parts` equal shares: of the batch, or of the columns, in whole vectors."""
    b0, b1, columns = word(at, 5), word(at, 6), word(at, 8)
    if b0 * b1 >= parts:
        for batch in range(b0 * b1 * part // parts, b0 * b1 * (part + 1) // parts):
            _columns(at, places, scratch, batch // b1, batch % b1, 0, columns)
        return
    vectors = (columns + WIDTH - 1) // WIDTH
    first, last = WIDTH * (vectors * part // parts), min(columns, WIDTH * (vectors * (part + 1) // parts))
    for batch in range(b0 * b1):
        _columns(at, places, scratch, batch // b1, batch % b1, first, last)
