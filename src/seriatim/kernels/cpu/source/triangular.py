"""The inverse of a triangular matrix with ones on its diagonal, on vectors, for use inside kernels.

Squares of WIDTH x WIDTH on the diagonal are inverted by substitution with a row a register, all of it unrolled; the
blocks below them follow by products.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.language import function
from seriatim.kernels.cpu.source.simd import WIDTH, VectorAccess, multiply

__all__ = ["invert"]

_FLOAT, _INDEX = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, WIDTH)


@intrinsic
def _invert_square(typing, below, below_row, inverse, inverse_row):
    """WIDTH x WIDTH: row i of the inverse is e_i + the sum over j < i of below[i, j] times row j."""

    def generate(context, builder, _, arguments):
        below, below_row, inverse, inverse_row = arguments
        pointer, access = _FLOAT.as_pointer(), VectorAccess(builder)
        below, inverse = builder.inttoptr(below, pointer), builder.inttoptr(inverse, pointer)
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        fma = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fma.v{WIDTH}f32")

        def at(base, row, stride):
            return builder.gep(base, [builder.mul(ir.Constant(_INDEX, row), stride)])

        def lane(vector, j):
            every = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [j] * WIDTH)
            return builder.shuffle_vector(vector, ir.Constant(_VECTOR, ir.Undefined), every)

        rows = []
        for i in range(WIDTH):
            total = ir.Constant(_VECTOR, [float(column == i) for column in range(WIDTH)])
            factors = access.load(at(below, i, below_row))
            for j in range(i):
                total = builder.call(fma, [lane(factors, j), rows[j], total])
            rows.append(total)
            access.store(total, at(inverse, i, inverse_row))
        return context.get_dummy_value()

    return types.void(types.uintp, types.int64, types.uintp, types.int64), generate


@function
def invert(n, below, below_row, inverse, inverse_row, spare):
    """inverse = (1 - below)^-1 (n, n), n a multiple of WIDTH. Of `below` only what lies below its diagonal counts.

    Addresses, and distances in float32s; spare: room for WIDTH x n. The blocks of `inverse` above its diagonal are 0.
    """
    for i in range(0, n, WIDTH):
        row, square = inverse + 4 * i * inverse_row, inverse + 4 * i * (inverse_row + 1)
        _invert_square(below + 4 * i * (below_row + 1), below_row, square, inverse_row)
        if i > 0:
            multiply(WIDTH, i, i, below + 4 * i * below_row, below_row, 1, inverse, inverse_row, spare, n, 0)
            multiply(WIDTH, i, WIDTH, square, inverse_row, 1, spare, n, row, inverse_row, 0)
        if i + WIDTH < n:
            multiply(WIDTH, n - i - WIDTH, 0, row, 1, 1, row, 1, square + 4 * WIDTH, inverse_row, 0)
