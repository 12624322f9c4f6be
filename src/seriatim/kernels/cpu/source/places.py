"""Where the arrays of a thread's working memory begin."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["places"]


@intrinsic
def places(typing, begin, sizes):
    """The addresses of arrays of so many float32 that lie one behind another from `begin`, and what is behind them."""

    def generate(context, builder, signature, arguments):
        found = [arguments[0]]
        for size in cgutils.unpack_tuple(builder, arguments[1], sizes.count):
            found.append(builder.add(found[-1], builder.mul(size, ir.Constant(ir.IntType(64), 4))))
        return context.make_tuple(builder, signature.return_type, found)

    return types.UniTuple(types.int64, sizes.count + 1)(types.int64, sizes), generate
