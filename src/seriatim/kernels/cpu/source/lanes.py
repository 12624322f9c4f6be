"""Vectors of WIDTH float32 as values, for loops that must keep them in registers or run across vectors.

    for first in range(0, n, WIDTH):
        some = lanes(n - first)                     # which lanes there are: the others are neither read nor written
        total = load(x + 4 * first, some)
        for i in range(1, rows):
            total = total * load(x + 4 * (i * row + first), some)
        store(total, out + 4 * first, some)

Sums, differences, products and quotients take a vector and a vector, or a vector and a number.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from seriatim.kernels.cpu.source.simd import WIDTH, first_lanes

__all__ = ["WIDTH", "every", "lanes", "load", "nonzero", "number", "store", "sum_of", "where"]

_FLOAT, _SMALL = ir.FloatType(), ir.IntType(32)
_VECTOR, _BITS = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(ir.IntType(1), WIDTH)


class _Lanes(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Lanes")


class _Mask(types.Type):
    def __init__(self) -> None:
        super().__init__(name="Mask")


LANES, MASK = _Lanes(), _Mask()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


@register_model(_Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type) -> None:
        super().__init__(dmm, fe_type, _BITS)


@intrinsic
def lanes(typing, count):
    """The mask of the first `count` lanes; all of them if there are fewer."""

    def generate(context, builder, signature, arguments):
        return first_lanes(builder, arguments[0])

    return MASK(types.int64), generate


@intrinsic
def load(typing, place, mask):
    """The numbers at an address; 0 in the lanes that the mask leaves out."""

    def generate(context, builder, signature, arguments):
        place = builder.inttoptr(arguments[0], _VECTOR.as_pointer())
        kind = ir.FunctionType(_VECTOR, [_VECTOR.as_pointer(), _SMALL, _BITS, _VECTOR])
        masked = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.load.v{WIDTH}f32.p0")
        return builder.call(masked, [place, ir.Constant(_SMALL, 4), arguments[1], ir.Constant(_VECTOR, None)])

    return LANES(types.uintp, MASK), generate


@intrinsic
def store(typing, value, place, mask):
    """Writes the lanes of the mask to an address."""

    def generate(context, builder, signature, arguments):
        value, place, mask = arguments
        place = builder.inttoptr(place, _VECTOR.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [_VECTOR, _VECTOR.as_pointer(), _SMALL, _BITS])
        masked = cgutils.get_or_insert_function(builder.module, kind, f"llvm.masked.store.v{WIDTH}f32.p0")
        builder.call(masked, [value, place, ir.Constant(_SMALL, 4), mask])
        return context.get_dummy_value()

    return types.void(LANES, types.uintp, MASK), generate


def _broadcast(builder, value):
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(_SMALL, 0))
    zeros = ir.Constant(ir.VectorType(_SMALL, WIDTH), [0] * WIDTH)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), zeros)


@intrinsic
def every(typing, value):
    """A number in every lane."""

    def generate(context, builder, signature, arguments):
        return _broadcast(builder, arguments[0])

    return LANES(types.float32), generate


@intrinsic
def number(typing, place):
    """The number at an address, in every lane."""

    def generate(context, builder, signature, arguments):
        return _broadcast(builder, builder.load(builder.inttoptr(arguments[0], _FLOAT.as_pointer()), align=4))

    return LANES(types.uintp), generate


@intrinsic
def where(typing, mask, value, other):
    """`value` in the lanes of the mask, `other` elsewhere."""

    def generate(context, builder, signature, arguments):
        return builder.select(*arguments)

    return LANES(MASK, LANES, LANES), generate


@intrinsic
def nonzero(typing, value):
    """The mask of the lanes that are not 0."""

    def generate(context, builder, signature, arguments):
        return builder.fcmp_unordered("!=", arguments[0], ir.Constant(_VECTOR, None))

    return MASK(LANES), generate


@intrinsic
def sum_of(typing, value):
    """The sum of all lanes."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        add = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{WIDTH}f32")
        return builder.call(add, [ir.Constant(_FLOAT, 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float32(LANES), generate


def _arithmetic(name):
    """An intrinsic of two vectors, for an instruction of LLVM that may be joined with another to one."""

    @intrinsic
    def compute(typing, x, y):
        def generate(context, builder, signature, arguments):
            return getattr(builder, name)(*arguments, flags=("contract",))

        return LANES(LANES, LANES), generate

    return compute


def _register(symbol, compute):
    """Makes Python's operator mean it."""

    @overload(symbol)
    def of_vectors(x, y):
        if x is LANES and y is LANES:
            return lambda x, y: compute(x, y)
        if x is LANES and isinstance(y, types.Number):
            return lambda x, y: compute(x, every(y))
        return None


_NAMES = {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul", operator.truediv: "fdiv"}
for _symbol, _name in _NAMES.items():
    _register(_symbol, _arithmetic(_name))
