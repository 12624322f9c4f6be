"""Products of few rows with quantised weights, which are read from memory once and widened in registers.

Four kinds of weights, each row with its scales (:mod:`seriatim.ops.quantized_linear` says how they lie):

- BYTES: int8, one float32 scale a row; the rows of A are any float32.
- WHOLE: the same, but the numbers of A are whole and of 8 bits, so that sums of products are made in integers, 64
  products in one instruction where the processor has it (VNNI).
- NIBBLES: 4 bits, a bfloat16 scale for every group of a row's weights.
- WHOLE_NIBBLES: the same for whole numbers of 8 bits, in groups of 128 or in one.

Fields of the instruction: its kind; rows, columns, inner length; weights that share a scale; A's place and row stride;
the weights' place and row stride; C's place, it is contiguous; the scales' place and row stride. Strides are in bytes.
"""

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.simd import WIDTH, VectorAccess, first_lanes
from seriatim.kernels.cpu.source.step_codes import NIBBLES, WHOLE, WHOLE_NIBBLES
from seriatim.kernels.cpu.source.step_expressions import place_at
from seriatim.kernels.cpu.source.step_memory import read_float, routine, word, write_byte
from seriatim.kernels.cpu.source.step_products import fma, lane_sum

__all__ = ["multiply_quantized"]

_FLOAT, _INDEX, _BYTE, _INT = ir.FloatType(), ir.IntType(64), ir.IntType(8), ir.IntType(32)
_VECTOR, _LANES = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_INT, WIDTH)
_HAS_VNNI = WIDTH == 16 and llvm.get_host_cpu_features().get("avx512vnni", False)
_DOTTED = 64  # products of an instruction of VNNI
_PAIRED = 32  # weights whose halves lie in the same bytes


def _constant(value, kind=_LANES):
    return ir.Constant(kind, [value] * kind.count)


def _bytes(builder, place, mask=None):
    """WIDTH bytes as integers with a sign."""
    narrow = ir.VectorType(_BYTE, WIDTH)
    place = builder.bitcast(place, narrow.as_pointer())
    if mask is None:
        return builder.sext(builder.load(place, align=1), _LANES)
    kind = ir.FunctionType(narrow, [narrow.as_pointer(), _INT, mask.type, narrow])
    load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{WIDTH}i8.p0")
    return builder.sext(builder.call(load, [place, ir.Constant(_INT, 1), mask, ir.Constant(narrow, None)]), _LANES)


class _Block:
    """What the three kinds share: where rows begin, and a sum for every row of A and row of weights."""

    def __init__(self, builder, columns, rows, arguments):
        self.builder, self.columns, self.rows = builder, columns, rows
        self.inner, self.group, a, a_row, b, b_row, self.c, self.c_row, self.s, self.s_row, self.q, self.q_row = (
            arguments
        )
        self.a = [self.pointer(a, a_row, i, _FLOAT) for i in range(rows)]
        self.b = [self.pointer(b, b_row, j, _BYTE) for j in range(columns)]
        self.sums = self.zeros(_VECTOR)

    def pointer(self, base, distance, times, kind):
        place = self.builder.add(base, self.builder.mul(distance, ir.Constant(_INDEX, times)))
        return self.builder.inttoptr(place, kind.as_pointer())

    def zeros(self, kind):
        found = {}
        for key in [(i, j) for j in range(self.columns) for i in range(self.rows)]:
            found[key] = cgutils.alloca_once(self.builder, kind)
            self.builder.store(ir.Constant(kind, None), found[key])
        return found

    def add(self, place, left, right):
        self.builder.store(fma(self.builder, left, right, self.builder.load(place)), place)

    def left(self, k, mask=None):
        """WIDTH numbers of every row of A from k on."""
        access = VectorAccess(self.builder, mask)
        return [access.load(self.builder.gep(start, [k]), mask is not None) for start in self.a]

    def add_bytes(self, k, mask=None):
        """WIDTH products of int8."""
        left = self.left(k, mask)
        for j, start in enumerate(self.b):
            right = self.builder.sitofp(_bytes(self.builder, self.builder.gep(start, [k]), mask), _VECTOR)
            for i in range(self.rows):
                self.add(self.sums[i, j], left[i], right)

    def add_rest(self, first):
        """The products of int8 from `first` on."""
        builder, width = self.builder, ir.Constant(_INDEX, WIDTH)
        count = builder.sub(self.inner, first)
        with cgutils.for_range(builder, builder.sdiv(count, width)) as loop:
            self.add_bytes(builder.add(first, builder.mul(loop.index, width)))
        lanes = builder.srem(count, width)
        with builder.if_then(builder.icmp_signed("!=", lanes, ir.Constant(_INDEX, 0))):
            self.add_bytes(builder.sub(self.inner, lanes), first_lanes(builder, lanes))

    def finish(self, whole=None):
        """C, each number times its row's scale; `whole` are sums of integers to be added."""
        builder = self.builder
        for (i, j), place in self.sums.items():
            total = lane_sum(builder, builder.load(place))
            if whole is not None:
                total = builder.fadd(total, builder.sitofp(whole[i, j], _FLOAT))
            if self.s is not None:
                total = builder.fmul(total, builder.load(self.pointer(self.s, self.s_row, j, _FLOAT)))
            row = self.pointer(self.c, self.c_row, i, _FLOAT)
            builder.store(total, builder.gep(row, [ir.Constant(_INDEX, j)]))


def _plain(block):
    """BYTES."""
    block.add_rest(ir.Constant(_INDEX, 0))
    block.finish()


def _integer(block):
    """WHOLE: with the weights w as w + 128, from which 128 times the sum of A's numbers is taken away again."""
    builder, many = block.builder, ir.VectorType(_BYTE, _DOTTED)
    totals = block.zeros(_LANES)
    rows = [block.pointer(block.q, block.q_row, i, _BYTE) for i in range(block.rows)]
    dot = _dot(builder)
    dots = builder.sdiv(block.inner, ir.Constant(_INDEX, _DOTTED))

    def load(start, k):
        return builder.load(builder.bitcast(builder.gep(start, [k]), many.as_pointer()), align=1)

    ones = _constant(1, many)
    sums = [cgutils.alloca_once(builder, _LANES) for _ in rows]
    for place in sums:
        builder.store(ir.Constant(_LANES, None), place)
    with cgutils.for_range(builder, dots) as loop:
        k = builder.mul(loop.index, ir.Constant(_INDEX, _DOTTED))
        left = [builder.bitcast(load(start, k), _LANES) for start in rows]
        for i, place in enumerate(sums):
            builder.store(builder.call(dot, [builder.load(place), builder.bitcast(ones, _LANES), left[i]]), place)
        for j, start in enumerate(block.b):
            right = builder.bitcast(builder.xor(load(start, k), _constant(0x80, many)), _LANES)
            for i in range(block.rows):
                place = totals[i, j]
                builder.store(builder.call(dot, [builder.load(place), right, left[i]]), place)
    block.add_rest(builder.mul(dots, ir.Constant(_INDEX, _DOTTED)))
    shifts = [builder.mul(ir.Constant(_INT, 128), lane_sum(builder, builder.load(place))) for place in sums]
    whole = {(i, j): builder.sub(lane_sum(builder, builder.load(place)), shifts[i]) for (i, j), place in totals.items()}
    block.finish(whole)


def _paired(block):
    """NIBBLES."""
    builder, size = block.builder, ir.Constant(_INDEX, _PAIRED)
    scales, scale_row, block.s = block.s, block.s_row, None
    parts = block.zeros(_VECTOR)
    low, four, eight = _constant(15), _constant(4), _constant(8)

    def add(k, masked):
        """The products of a block that begins at k."""
        for start in range(0, _PAIRED // 2, WIDTH):
            halves = []
            for shift in (start, _PAIRED // 2 + start):
                place = builder.add(k, ir.Constant(_INDEX, shift))
                mask = first_lanes(builder, builder.sub(block.inner, place)) if masked else None
                halves.append(block.left(place, mask))
            where = builder.add(builder.sdiv(k, ir.Constant(_INDEX, 2)), ir.Constant(_INDEX, start))
            for j, row in enumerate(block.b):
                both = _bytes(builder, builder.gep(row, [where]))
                pair = [builder.sub(builder.and_(both, low), eight), builder.ashr(both, four)]
                for left, right in zip(halves, [builder.sitofp(z, _VECTOR) for z in pair], strict=True):
                    for i in range(block.rows):
                        block.add(parts[i, j], left[i], right)

    groups = builder.sdiv(builder.add(block.inner, builder.sub(block.group, ir.Constant(_INDEX, 1))), block.group)
    with cgutils.for_range(builder, groups) as outer:
        first = builder.mul(outer.index, block.group)
        left = builder.sub(block.inner, first)
        count = builder.select(builder.icmp_signed("<", left, block.group), left, block.group)
        for place in parts.values():
            builder.store(ir.Constant(_VECTOR, None), place)
        with cgutils.for_range(builder, builder.sdiv(count, size)) as loop:
            add(builder.add(first, builder.mul(loop.index, size)), False)
        lanes = builder.srem(count, size)
        with builder.if_then(builder.icmp_signed("!=", lanes, ir.Constant(_INDEX, 0))):
            add(builder.add(first, builder.sub(count, lanes)), True)
        access = VectorAccess(builder)
        for j in range(block.columns):
            half = builder.load(builder.gep(block.pointer(scales, scale_row, j, ir.IntType(16)), [outer.index]))
            bits = builder.shl(builder.zext(half, _INT), ir.Constant(_INT, 16))
            scale = access.broadcast(builder.bitcast(bits, _FLOAT))
            for i in range(block.rows):
                block.add(block.sums[i, j], builder.load(parts[i, j]), scale)
    block.finish()


def _paired_integer(block):
    """WHOLE_NIBBLES: with w + 8, from which 8 times the sums of A's numbers are taken away again.

    A's numbers lie as the halves of the weights do: for 128 of them 64 that meet lower halves, then 64 for upper ones.
    """
    builder, many, flat = block.builder, ir.VectorType(_BYTE, _DOTTED), ir.VectorType(ir.IntType(16), _DOTTED)
    scales, scale_row, block.s = block.s, block.s_row, None
    dot = _dot(builder)
    rows = [block.pointer(block.q, block.q_row, i, _BYTE) for i in range(block.rows)]
    row_bytes = builder.mul(ir.Constant(_INDEX, _PAIRED // 2), _over(builder, block.inner, _PAIRED))
    access = VectorAccess(builder)

    def load(start, k, mask=None):
        place = builder.bitcast(builder.gep(start, [k]), many.as_pointer())
        if mask is None:
            return builder.load(place, align=1)
        kind = ir.FunctionType(many, [many.as_pointer(), _INT, mask.type, many])
        masked = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{_DOTTED}i8.p0")
        return builder.call(masked, [place, ir.Constant(_INT, 1), mask, ir.Constant(many, None)])

    def group(index, mask):
        """What a group of 128 adds."""
        k = builder.mul(index, ir.Constant(_INDEX, _DOTTED))
        twice = builder.add(k, k)
        lefts, shifts = [], []
        for start in rows:
            pair = [load(start, twice), load(start, builder.add(twice, ir.Constant(_INDEX, _DOTTED)))]
            lefts.append([builder.bitcast(half, _LANES) for half in pair])
            total = ir.Constant(_LANES, None)
            for half in lefts[-1]:
                total = builder.call(dot, [total, builder.bitcast(_constant(8, many), _LANES), half])
            shifts.append(total)
        for j, start in enumerate(block.b):
            both = load(start, k, mask)
            low = builder.and_(both, _constant(15, many))
            high = builder.xor(builder.lshr(both, _constant(4, many)), _constant(8, many))
            pair = [builder.bitcast(half, _LANES) for half in (low, high)]
            half = builder.load(builder.gep(block.pointer(scales, scale_row, j, ir.IntType(16)), [index]))
            bits = builder.shl(builder.zext(half, _INT), ir.Constant(_INT, 16))
            scale = access.broadcast(builder.bitcast(bits, _FLOAT))
            for i in range(block.rows):
                total = ir.Constant(_LANES, None)
                for weights, left in zip(pair, lefts[i], strict=True):
                    total = builder.call(dot, [total, weights, left])
                part = builder.sitofp(builder.sub(total, shifts[i]), _VECTOR)
                block.add(block.sums[i, j], part, scale)

    whole = builder.sdiv(row_bytes, ir.Constant(_INDEX, _DOTTED))
    with cgutils.for_range(builder, whole) as loop:
        group(loop.index, None)
    rest = builder.srem(row_bytes, ir.Constant(_INDEX, _DOTTED))
    with builder.if_then(builder.icmp_signed("!=", rest, ir.Constant(_INDEX, 0))):
        count = builder.insert_element(
            ir.Constant(flat, ir.Undefined), builder.trunc(rest, ir.IntType(16)), ir.Constant(_INT, 0)
        )
        zeros = ir.Constant(ir.VectorType(_INT, _DOTTED), [0] * _DOTTED)
        counts = builder.shuffle_vector(count, ir.Constant(flat, ir.Undefined), zeros)
        group(whole, builder.icmp_signed("<", ir.Constant(flat, list(range(_DOTTED))), counts))
    block.finish()


def _over(builder, number, size):
    """number / size, rounded up."""
    more = builder.add(number, ir.Constant(_INDEX, size - 1))
    return builder.sdiv(more, ir.Constant(_INDEX, size))


def _dot(builder):
    """The function that adds 64 products of bytes without a sign and with one to 16 sums."""
    kind = ir.FunctionType(_LANES, [_LANES] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")


def _block(columns, rows, write):
    """A function that computes C[:rows, :columns]."""

    @intrinsic
    def block(typing, inner, group, a, a_row, b, b_row, c, c_row, s, s_row, q, q_row):
        """Places are addresses, distances bytes; s are scales, q the rows of A as int8."""
        signature = types.void(*[types.int64] * 12)

        def generate(context, builder, _, arguments):
            write(_Block(builder, columns, rows, arguments))
            return context.get_dummy_value()

        return signature, generate

    return block


def _products(write):
    """The function that computes all of C."""
    wide, single, four_4, four_1 = (_block(*size, write) for size in ((8, 1), (1, 1), (4, 4), (1, 4)))

    @routine
    def run(rows, columns, inner, group, a, a_row, b, b_row, c, c_row, s, s_row, q, q_row):
        i = 0
        while i < rows:
            x, y, z, j = a + i * a_row, c + i * c_row, q + i * q_row, 0
            if rows - i >= 4:
                while columns - j >= 4:
                    four_4(
                        inner, group, x, a_row, b + j * b_row, b_row, y + 4 * j, c_row, s + j * s_row, s_row, z, q_row
                    )
                    j += 4
                while j < columns:
                    four_1(
                        inner, group, x, a_row, b + j * b_row, b_row, y + 4 * j, c_row, s + j * s_row, s_row, z, q_row
                    )
                    j += 1
                i += 4
                continue
            while columns - j >= 8:
                wide(inner, group, x, a_row, b + j * b_row, b_row, y + 4 * j, c_row, s + j * s_row, s_row, z, q_row)
                j += 8
            while j < columns:
                single(inner, group, x, a_row, b + j * b_row, b_row, y + 4 * j, c_row, s + j * s_row, s_row, z, q_row)
                j += 1
            i += 1

    return run


_of_bytes, _of_nibbles = _products(_plain), _products(_paired)
_of_whole = _products(_integer) if _HAS_VNNI else _of_bytes
_of_whole_nibbles = _products(_paired_integer) if _HAS_VNNI else _of_nibbles


@routine
def _in_halves(source, target, inner):
    """Whole numbers as bytes, as WHOLE_NIBBLES wants them, filled up with zeros."""
    for k in range(0, inner + (-inner) % (2 * _DOTTED), 2 * _DOTTED):
        for j in range(2 * _DOTTED):
            block, upper = (j % _DOTTED) // (_PAIRED // 2), j // _DOTTED
            at = k + _PAIRED * block + _PAIRED // 2 * upper + j % (_PAIRED // 2)
            write_byte(target + k + j, read_float(source + 4 * at) if at < inner else np.float32(0))


@routine
def multiply_quantized(at, places, scratch, part, parts):
    """Does one of `parts` equal shares of the columns, in whole vectors."""
    kind, rows, columns, inner, group = word(at, 3), word(at, 4), word(at, 5), word(at, 6), word(at, 7)
    a, a_row = place_at(at + 64, places, scratch), word(at, 10)
    vectors = (columns + WIDTH - 1) // WIDTH
    first, last = WIDTH * (vectors * part // parts), min(columns, WIDTH * (vectors * (part + 1) // parts))
    b, b_row = place_at(at + 88, places, scratch) + first * word(at, 13), word(at, 13)
    c, c_row = place_at(at + 112, places, scratch) + 4 * first, 4 * columns
    s, s_row = place_at(at + 128, places, scratch) + first * word(at, 18), word(at, 18)
    if kind == NIBBLES:
        _of_nibbles(rows, last - first, inner, group, a, a_row, b, b_row, c, c_row, s, s_row, 0, 0)
    elif kind == WHOLE_NIBBLES:
        q_row = inner + (-inner) % (2 * _DOTTED)
        for i in range(rows):
            _in_halves(a + i * a_row, scratch + i * q_row, inner)
        _of_whole_nibbles(rows, last - first, inner, group, a, a_row, b, b_row, c, c_row, s, s_row, scratch, q_row)
    elif kind == WHOLE:
        for i in range(rows):
            for k in range(inner):
                write_byte(scratch + i * inner + k, read_float(a + i * a_row + 4 * k))
        _of_whole(rows, last - first, inner, group, a, a_row, b, b_row, c, c_row, s, s_row, scratch, inner)
    else:
        _of_bytes(rows, last - first, inner, group, a, a_row, b, b_row, c, c_row, s, s_row, 0, 0)
