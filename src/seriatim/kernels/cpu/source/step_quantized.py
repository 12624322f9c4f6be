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

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.simd import WIDTH, first_lanes
from seriatim.kernels.cpu.source.step_codes import NIBBLES, WHOLE, WHOLE_NIBBLES
from seriatim.kernels.cpu.source.step_expressions import place_at
from seriatim.kernels.cpu.source.step_integers import DOTTED, HAS_VNNI, add_bytes, add_pairs
from seriatim.kernels.cpu.source.step_memory import read_float, routine, word, write_byte
from seriatim.kernels.cpu.source.step_weights import INDEX, PAIRED, VECTOR, Block, constant, narrow_bytes

__all__ = ["multiply_quantized"]


def _plain(block):
    """BYTES."""
    block.add_rest(ir.Constant(INDEX, 0))
    block.finish()


def _paired(block):
    """NIBBLES."""
    builder, size = block.builder, ir.Constant(INDEX, PAIRED)
    scales, scale_row, block.s = block.s, block.s_row, None
    parts = block.zeros(VECTOR)
    low, four, eight = constant(15), constant(4), constant(8)

    def add(k, masked):
        """The products of a block that begins at k."""
        for start in range(0, PAIRED // 2, WIDTH):
            halves = []
            for shift in (start, PAIRED // 2 + start):
                place = builder.add(k, ir.Constant(INDEX, shift))
                mask = first_lanes(builder, builder.sub(block.inner, place)) if masked else None
                halves.append(block.left(place, mask))
            where = builder.add(builder.sdiv(k, ir.Constant(INDEX, 2)), ir.Constant(INDEX, start))
            for j, row in enumerate(block.b):
                both = narrow_bytes(builder, builder.gep(row, [where]))
                pair = [builder.sub(builder.and_(both, low), eight), builder.ashr(both, four)]
                for left, right in zip(halves, [builder.sitofp(z, VECTOR) for z in pair], strict=True):
                    for i in range(block.rows):
                        block.add(parts[i, j], left[i], right)

    groups = builder.sdiv(builder.add(block.inner, builder.sub(block.group, ir.Constant(INDEX, 1))), block.group)
    with cgutils.for_range(builder, groups) as outer:
        first = builder.mul(outer.index, block.group)
        left = builder.sub(block.inner, first)
        count = builder.select(builder.icmp_signed("<", left, block.group), left, block.group)
        for place in parts.values():
            builder.store(ir.Constant(VECTOR, None), place)
        with cgutils.for_range(builder, builder.sdiv(count, size)) as loop:
            add(builder.add(first, builder.mul(loop.index, size)), False)
        lanes = builder.srem(count, size)
        with builder.if_then(builder.icmp_signed("!=", lanes, ir.Constant(INDEX, 0))):
            add(builder.add(first, builder.sub(count, lanes)), True)
        for j in range(block.columns):
            scale = block.scale_at(scales, scale_row, j, outer.index)
            for i in range(block.rows):
                block.add(block.sums[i, j], builder.load(parts[i, j]), scale)
    block.finish()


def _block(columns, rows, write):
    """A function that computes C[:rows, :columns]."""

    @intrinsic
    def block(typing, inner, group, a, a_row, b, b_row, c, c_row, s, s_row, q, q_row):
        """Places are addresses, distances bytes; s are scales, q the rows of A as int8."""
        signature = types.void(*[types.int64] * 12)

        def generate(context, builder, _, arguments):
            write(Block(builder, columns, rows, arguments))
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
_of_whole = _products(add_bytes) if HAS_VNNI else _of_bytes
_of_whole_nibbles = _products(add_pairs) if HAS_VNNI else _of_nibbles


@routine
def _in_halves(source, target, inner):
    """Whole numbers as bytes, as WHOLE_NIBBLES wants them, filled up with zeros."""
    for k in range(0, inner + (-inner) % (2 * DOTTED), 2 * DOTTED):
        for j in range(2 * DOTTED):
            block, upper = (j % DOTTED) // (PAIRED // 2), j // DOTTED
            at = k + PAIRED * block + PAIRED // 2 * upper + j % (PAIRED // 2)
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
        q_row = inner + (-inner) % (2 * DOTTED)
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
