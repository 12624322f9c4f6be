"""What products with quantised weights share: where rows begin, loads of int8, a sum for every pair of rows."""

from llvmlite import ir
from numba.core import cgutils

from seriatim.kernels.cpu.source.simd import WIDTH, VectorAccess, first_lanes
from seriatim.kernels.cpu.source.step_products import fma, lane_sum

__all__ = ["BYTE", "INDEX", "INT", "LANES", "PAIRED", "VECTOR", "Block", "constant", "narrow_bytes"]

FLOAT, INDEX, BYTE, INT, HALF = ir.FloatType(), ir.IntType(64), ir.IntType(8), ir.IntType(32), ir.IntType(16)
VECTOR, LANES = ir.VectorType(FLOAT, WIDTH), ir.VectorType(INT, WIDTH)
PAIRED = 32  # weights whose halves lie in the same bytes


def constant(value, kind=LANES):
    """A vector of equal numbers."""
    return ir.Constant(kind, [value] * kind.count)


def narrow_bytes(builder, place, mask=None):
    """WIDTH bytes as integers with a sign."""
    narrow = ir.VectorType(BYTE, WIDTH)
    place = builder.bitcast(place, narrow.as_pointer())
    if mask is None:
        return builder.sext(builder.load(place, align=1), LANES)
    kind = ir.FunctionType(narrow, [narrow.as_pointer(), INT, mask.type, narrow])
    load = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{WIDTH}i8.p0")
    return builder.sext(builder.call(load, [place, ir.Constant(INT, 1), mask, ir.Constant(narrow, None)]), LANES)


class Block:
    """The rows of A and of weights that are multiplied together, and a sum for each pair."""

    def __init__(self, builder, columns, rows, arguments):
        self.builder, self.columns, self.rows = builder, columns, rows
        self.inner, self.group, a, a_row, b, b_row, self.c, self.c_row, self.s, self.s_row, self.q, self.q_row = (
            arguments
        )
        self.a = [self.pointer(a, a_row, i, FLOAT) for i in range(rows)]
        self.b = [self.pointer(b, b_row, j, BYTE) for j in range(columns)]
        self.sums = self.zeros(VECTOR)

    def pointer(self, base, distance, times, kind):
        place = self.builder.add(base, self.builder.mul(distance, ir.Constant(INDEX, times)))
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
            right = self.builder.sitofp(narrow_bytes(self.builder, self.builder.gep(start, [k]), mask), VECTOR)
            for i in range(self.rows):
                self.add(self.sums[i, j], left[i], right)

    def add_rest(self, first):
        """The products of int8 from `first` on."""
        builder, width = self.builder, ir.Constant(INDEX, WIDTH)
        count = builder.sub(self.inner, first)
        with cgutils.for_range(builder, builder.sdiv(count, width)) as loop:
            self.add_bytes(builder.add(first, builder.mul(loop.index, width)))
        lanes = builder.srem(count, width)
        with builder.if_then(builder.icmp_signed("!=", lanes, ir.Constant(INDEX, 0))):
            self.add_bytes(builder.sub(self.inner, lanes), first_lanes(builder, lanes))

    def scale_at(self, scales, distance, j, index):
        """The bfloat16 scale of a group of row j, in every lane."""
        half = self.builder.load(self.builder.gep(self.pointer(scales, distance, j, HALF), [index]))
        bits = self.builder.shl(self.builder.zext(half, INT), ir.Constant(INT, 16))
        return VectorAccess(self.builder).broadcast(self.builder.bitcast(bits, FLOAT))

    def finish(self, whole=None):
        """C, each number times its row's scale; `whole` are sums of integers to be added."""
        builder = self.builder
        for (i, j), place in self.sums.items():
            total = lane_sum(builder, builder.load(place))
            if whole is not None:
                total = builder.fadd(total, builder.sitofp(whole[i, j], FLOAT))
            if self.s is not None:
                total = builder.fmul(total, builder.load(self.pointer(self.s, self.s_row, j, FLOAT)))
            row = self.pointer(self.c, self.c_row, i, FLOAT)
            builder.store(total, builder.gep(row, [ir.Constant(INDEX, j)]))
