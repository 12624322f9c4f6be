"""Products of whole numbers with quantised weights in integers: 64 products of bytes in one instruction (VNNI)."""

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils

from seriatim.kernels.cpu.source.simd import WIDTH
from seriatim.kernels.cpu.source.step_products import lane_sum
from seriatim.kernels.cpu.source.step_weights import BYTE, INDEX, INT, LANES, PAIRED, VECTOR, constant

__all__ = ["DOTTED", "HAS_VNNI", "add_bytes", "add_pairs"]

HAS_VNNI = WIDTH == 16 and llvm.get_host_cpu_features().get("avx512vnni", False)
DOTTED = 64  # products of an instruction


def add_bytes(block):
    """WHOLE: with the weights w as w + 128, from which 128 times the sum of A's numbers is taken away again."""
    builder, many = block.builder, ir.VectorType(BYTE, DOTTED)
    totals = block.zeros(LANES)
    rows = [block.pointer(block.q, block.q_row, i, BYTE) for i in range(block.rows)]
    dot = _dot(builder)
    dots = builder.sdiv(block.inner, ir.Constant(INDEX, DOTTED))

    def load(start, k):
        return builder.load(builder.bitcast(builder.gep(start, [k]), many.as_pointer()), align=1)

    ones = constant(1, many)
    sums = [cgutils.alloca_once(builder, LANES) for _ in rows]
    for place in sums:
        builder.store(ir.Constant(LANES, None), place)
    with cgutils.for_range(builder, dots) as loop:
        k = builder.mul(loop.index, ir.Constant(INDEX, DOTTED))
        left = [builder.bitcast(load(start, k), LANES) for start in rows]
        for i, place in enumerate(sums):
            builder.store(builder.call(dot, [builder.load(place), builder.bitcast(ones, LANES), left[i]]), place)
        for j, start in enumerate(block.b):
            right = builder.bitcast(builder.xor(load(start, k), constant(0x80, many)), LANES)
            for i in range(block.rows):
                place = totals[i, j]
                builder.store(builder.call(dot, [builder.load(place), right, left[i]]), place)
    block.add_rest(builder.mul(dots, ir.Constant(INDEX, DOTTED)))
    shifts = [builder.mul(ir.Constant(INT, 128), lane_sum(builder, builder.load(place))) for place in sums]
    whole = {(i, j): builder.sub(lane_sum(builder, builder.load(place)), shifts[i]) for (i, j), place in totals.items()}
    block.finish(whole)


def add_pairs(block):
    """WHOLE_NIBBLES: with w + 8, from which 8 times the sums of A's numbers are taken away again.

    A's numbers lie as the halves of the weights do: for 128 of them 64 that meet lower halves, then 64 for upper ones.
    """
    builder, many, flat = block.builder, ir.VectorType(BYTE, DOTTED), ir.VectorType(ir.IntType(16), DOTTED)
    scales, scale_row, block.s = block.s, block.s_row, None
    dot = _dot(builder)
    rows = [block.pointer(block.q, block.q_row, i, BYTE) for i in range(block.rows)]
    row_bytes = builder.mul(ir.Constant(INDEX, PAIRED // 2), _over(builder, block.inner, PAIRED))

    def load(start, k, mask=None):
        place = builder.bitcast(builder.gep(start, [k]), many.as_pointer())
        if mask is None:
            return builder.load(place, align=1)
        kind = ir.FunctionType(many, [many.as_pointer(), INT, mask.type, many])
        masked = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{DOTTED}i8.p0")
        return builder.call(masked, [place, ir.Constant(INT, 1), mask, ir.Constant(many, None)])

    def group(index, mask):
        """What a group of 128 adds."""
        k = builder.mul(index, ir.Constant(INDEX, DOTTED))
        twice = builder.add(k, k)
        lefts, shifts = [], []
        for start in rows:
            pair = [load(start, twice), load(start, builder.add(twice, ir.Constant(INDEX, DOTTED)))]
            lefts.append([builder.bitcast(half, LANES) for half in pair])
            total = ir.Constant(LANES, None)
            for half in lefts[-1]:
                total = builder.call(dot, [total, builder.bitcast(constant(8, many), LANES), half])
            shifts.append(total)
        for j, start in enumerate(block.b):
            both = load(start, k, mask)
            low = builder.and_(both, constant(15, many))
            high = builder.xor(builder.lshr(both, constant(4, many)), constant(8, many))
            pair = [builder.bitcast(half, LANES) for half in (low, high)]
            scale = block.scale_at(scales, scale_row, j, index)
            for i in range(block.rows):
                total = ir.Constant(LANES, None)
                for weights, left in zip(pair, lefts[i], strict=True):
                    total = builder.call(dot, [total, weights, left])
                part = builder.sitofp(builder.sub(total, shifts[i]), VECTOR)
                block.add(block.sums[i, j], part, scale)

    whole = builder.sdiv(row_bytes, ir.Constant(INDEX, DOTTED))
    with cgutils.for_range(builder, whole) as loop:
        group(loop.index, None)
    rest = builder.srem(row_bytes, ir.Constant(INDEX, DOTTED))
    with builder.if_then(builder.icmp_signed("!=", rest, ir.Constant(INDEX, 0))):
        count = builder.insert_element(
            ir.Constant(flat, ir.Undefined), builder.trunc(rest, ir.IntType(16)), ir.Constant(INT, 0)
        )
        zeros = ir.Constant(ir.VectorType(INT, DOTTED), [0] * DOTTED)
        counts = builder.shuffle_vector(count, ir.Constant(flat, ir.Undefined), zeros)
        group(whole, builder.icmp_signed("<", ir.Constant(flat, list(range(DOTTED))), counts))
    block.finish()


def _over(builder, number, size):
    """number / size, rounded up."""
    more = builder.add(number, ir.Constant(INDEX, size - 1))
    return builder.sdiv(more, ir.Constant(INDEX, size))


def _dot(builder):
    """The function that adds 64 products of bytes without a sign and with one to 16 sums."""
    kind = ir.FunctionType(LANES, [LANES] * 3)
    return cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
