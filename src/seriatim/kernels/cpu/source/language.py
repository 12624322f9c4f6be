"""What kernels are written in: the argument types, the `@kernel` and `@function` decorators, views of memory.

A kernel is a function `(item, scratch, *arguments)` that does one work item; items run on several threads in no
particular order. `scratch` is the address of that thread's own memory. Every array argument is an ordinary numba array
whose last dimension is contiguous and whose other strides are anything (0 too); one that was None has size 0::

    @kernel
    def double(item: Index, scratch: Address, x: Floats2, y: Floats2):
        row, out = line(x, item), line(y, item)
        for i in range(row.size):
            out[i] = 2 * row[i]
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

__all__ = [
    "FLAGS",
    "Address",
    "Bools2",
    "Floats1",
    "Floats2",
    "Floats3",
    "Floats4",
    "Floats5",
    "Index",
    "Ints1",
    "Real",
    "address",
    "entry",
    "function",
    "gradual_kernel",
    "kernel",
    "line",
    "matrix",
    "next_after",
    "vector",
]

Index, Address, Real = types.int64, types.uintp, types.float32
Floats1, Floats2, Floats3, Floats4, Floats5 = (types.Array(types.float32, ndim, "A") for ndim in range(1, 6))
Bools2 = types.Array(types.boolean, 2, "A")
Ints1 = types.Array(types.int64, 1, "A")

# Sums may be reordered so that they vectorise. Infinities and NaN keep their meaning: padding and resets rely on them.
FLAGS = {"contract", "reassoc", "nsz", "arcp"}
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}
_IS_X86 = llvm.get_process_triple().startswith(("x86_64", "i686"))
_COUNTER, _ITEMS, _WORKER, _SCRATCH, _SCRATCH_BYTES, HEADER = range(6)  # the words before the arguments


def function(python: Callable[..., Any]) -> Any:
    """A function that kernels call."""
    return numba.njit(fastmath=FLAGS, **_OPTIONS)(python)


def kernel(python: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function to be compiled under its own name; the annotations are its argument types."""
    python.is_kernel = True  # type: ignore[attr-defined]
    return python


def gradual_kernel(python: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a kernel in which numbers below the normal range count, as slow as they are; in others they are 0."""
    python.keeps_denormals = True  # type: ignore[attr-defined]
    return kernel(python)


def entry(python: Callable[..., Any]) -> Any:
    """The C function void(int64 *words) that takes work items until none is left.

    words: the next item, how many there are, the next thread's number, the address of the threads' scratch memory, the
    bytes of each thread's; then of every array its address, shape and strides in bytes, of every number 8 bytes.
    """
    compiled = function(python)
    kinds = tuple(list(python.__annotations__.values())[2:])
    unpack = _unpacker(kinds)
    flush = not getattr(python, "keeps_denormals", False)

    def take(words):
        before = _flush_denormals(flush)
        arguments = unpack(words)
        scratch = types.uintp(_word(words, _SCRATCH) + next_after(words, _WORKER) * _word(words, _SCRATCH_BYTES))
        items = _word(words, _ITEMS)
        item = next_after(words, _COUNTER)
        while item < items:
            compiled(item, scratch, *arguments)
            item = next_after(words, _COUNTER)
        _restore_denormals(before)

    take.__name__ = python.__name__
    return numba.cfunc(types.void(types.voidptr), fastmath=FLAGS, **_OPTIONS)(take)


def words_of(kind: types.Type) -> int:
    """How many 8-byte words an argument of this type takes."""
    return 1 + 2 * kind.ndim if isinstance(kind, types.Array) else 1


def _unpacker(kinds: tuple[types.Type, ...]) -> Any:
    """A function that reads arguments of these types from the words that a launch wrote."""

    @intrinsic
    def unpack(typing, words):
        result = types.Tuple(kinds)

        def generate(context, builder, signature, arguments):
            base = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())

            def word(index):
                return builder.load(builder.gep(base, [ir.Constant(ir.IntType(64), index)]))

            values, at = [], HEADER
            for kind in kinds:
                if isinstance(kind, types.Array):
                    values.append(_array(context, builder, kind, [word(at + i) for i in range(words_of(kind))]))
                elif kind is types.float32:
                    double = builder.bitcast(word(at), ir.DoubleType())
                    values.append(builder.fptrunc(double, ir.FloatType()))
                else:
                    values.append(word(at))
                at += words_of(kind)
            return context.make_tuple(builder, result, values)

        return result(types.voidptr), generate

    return unpack


def _array(context, builder, kind, words):
    """A numba array from its address, shape and strides."""
    array = make_array(kind)(context, builder)
    item = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    data = builder.inttoptr(words[0], context.get_data_type(kind.dtype).as_pointer())
    shape, strides = words[1 : 1 + kind.ndim], [*words[1 + kind.ndim : -1], item]
    populate_array(array, data=data, shape=shape, strides=strides, itemsize=item, meminfo=None)
    return array._getvalue()


@intrinsic
def _flush_denormals(typing, flush):
    """Lets numbers below the normal range count as 0 on this thread if `flush`; returns what was set before.

    A memory that fades towards 0 otherwise ends among them, where each product takes a hundred times as long, for ever.
    """

    def generate(context, builder, signature, arguments):
        if not _IS_X86:
            return ir.Constant(ir.IntType(32), 0)
        place = cgutils.alloca_once(builder, ir.IntType(32))
        store, load = (_control(builder, name) for name in ("stmxcsr", "ldmxcsr"))
        builder.call(store, [builder.bitcast(place, ir.IntType(8).as_pointer())])
        before = builder.load(place)
        flushing = builder.or_(
            before, ir.Constant(ir.IntType(32), 0x8040)
        )  # flush results to zero, read inputs as zero
        builder.store(builder.select(arguments[0], flushing, before), place)
        builder.call(load, [builder.bitcast(place, ir.IntType(8).as_pointer())])
        return before

    return types.int32(types.boolean), generate


@intrinsic
def _restore_denormals(typing, before):
    """Undoes `_flush_denormals`."""

    def generate(context, builder, signature, arguments):
        if _IS_X86:
            place = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(arguments[0], place)
            builder.call(_control(builder, "ldmxcsr"), [builder.bitcast(place, ir.IntType(8).as_pointer())])
        return context.get_dummy_value()

    return types.void(types.int32), generate


def _control(builder, name):
    """The instruction that reads or writes the thread's floating point settings."""
    kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer()])
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.sse.{name}")


@intrinsic
def _word(typing, words, index):
    """words[index]."""

    def generate(context, builder, signature, arguments):
        base = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(base, [arguments[1]]))

    return types.int64(types.voidptr, types.int64), generate


@intrinsic
def next_after(typing, words, index):
    """words[index] before adding 1 to it, atomically."""

    def generate(context, builder, signature, arguments):
        base = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        place = builder.gep(base, [arguments[1]])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.voidptr, types.int64), generate


@intrinsic
def address(typing, array, *indices):
    """address(x, i, j): where x[i, j] lies, or the row x[i, j, :] of an array with one dimension more."""
    given = indices[0].types if len(indices) == 1 and isinstance(indices[0], types.BaseTuple) else indices
    if not isinstance(array, types.Array) or len(given) > array.ndim:
        return None

    def generate(context, builder, signature, arguments):
        structure = make_array(array)(context, builder, arguments[0])
        strides = cgutils.unpack_tuple(builder, structure.strides)
        place = builder.ptrtoint(structure.data, ir.IntType(64))
        chosen = cgutils.unpack_tuple(builder, arguments[1])
        for index, stride, kind in zip(chosen, strides, given, strict=False):
            wide = context.cast(builder, index, kind, types.int64)
            place = builder.add(place, builder.mul(wide, stride))
        return place

    return types.uintp(array, types.StarArgTuple(given)), generate


def _view(ndim: int) -> Any:
    """A function (address, *shape) -> contiguous float32 array there."""
    kind = types.Array(types.float32, ndim, "C")

    def view(context, builder, signature, arguments):
        place, *shape = arguments
        size = ir.Constant(ir.IntType(64), 4)
        strides = [size]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        array = make_array(kind)(context, builder)
        data = builder.inttoptr(place, ir.FloatType().as_pointer())
        populate_array(array, data=data, shape=shape, strides=strides, itemsize=size, meminfo=None)
        return array._getvalue()

    return kind, view


@intrinsic
def vector(typing, place, length):
    """vector(address, n): the n float32 there, as an array."""
    kind, view = _view(1)
    return kind(types.uintp, types.int64), view


@intrinsic
def matrix(typing, place, rows, columns):
    """matrix(address, rows, columns): the float32 there, row by row, as an array."""
    kind, view = _view(2)
    return kind(types.uintp, types.int64, types.int64), view


@function
def line(array, *indices):
    """line(x, i, j): the contiguous row x[i, j, :]."""
    return vector(address(array, *indices), array.shape[array.ndim - 1])
