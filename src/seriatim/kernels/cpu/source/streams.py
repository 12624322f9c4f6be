"""What kernels share that go through time token by token, and are done with each before memory has brought the next."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.language import function

__all__ = ["begins", "prefetch", "prefetch_to_write"]

_SMALL = ir.IntType(32)


def _prefetcher(writes: int):
    @intrinsic
    def begin(typing, place):
        """Begins to bring a line of memory into the cache; it need not exist."""

        def generate(context, builder, signature, arguments):
            byte = ir.IntType(8).as_pointer()
            kind = ir.FunctionType(ir.VoidType(), [byte, _SMALL, _SMALL, _SMALL])
            hints = [ir.Constant(_SMALL, hint) for hint in (writes, 3, 1)]
            ask = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(ask, [builder.inttoptr(arguments[0], byte), *hints])
            return context.get_dummy_value()

        return types.void(types.uintp), generate

    return begin


prefetch, prefetch_to_write = _prefetcher(0), _prefetcher(1)


@function
def begins(reset, b, t):
    """Whether what came before token t is forgotten."""
    return reset.shape[0] > 0 and reset[b, t]
