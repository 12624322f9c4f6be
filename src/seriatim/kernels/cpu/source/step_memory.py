"""Memory and the other threads, as the step interpreter sees them: addresses are integers, counters are atomic.

Every function of the interpreter takes integers only and is compiled for nothing else, which spares the compiler's
time.
"""

import sys

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.language import FLAGS
from seriatim.kernels.cpu.source.simd import WIDTH, VectorAccess, first_lanes

__all__ = [
    "atomic_add",
    "atomic_read",
    "copy_lanes",
    "float_of_bits",
    "lookup",
    "read_bool",
    "read_byte",
    "read_float",
    "read_half",
    "read_int",
    "rest",
    "routine",
    "store_everywhere",
    "widen_bytes",
    "widen_halves",
    "word",
    "write_bool",
    "write_byte",
    "write_float",
    "write_half",
    "write_int",
]

_INDEX, _FLOAT = ir.IntType(64), ir.FloatType()
_IS_X86 = llvm.get_process_triple().startswith(("x86_64", "i686"))


def _compiled(result):
    def decorate(python):
        signature = result(*[types.int64] * python.__code__.co_argcount)
        return numba.njit(signature, fastmath=FLAGS, error_model="numpy", boundscheck=False)(python)

    return decorate


routine = _compiled(types.void)  # for a function of integers that returns nothing
lookup = _compiled(types.int64)  # for a function of integers that returns one


def _pointer(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _reader(kind, result, convert):
    """A function from an address to the number there."""

    @intrinsic
    def read(typing, place):
        def generate(context, builder, signature, arguments):
            return convert(builder, builder.load(_pointer(builder, arguments[0], kind)))

        return result(types.int64), generate

    return read


def _writer(kind, given, convert):
    """A function that stores a number at an address."""

    @intrinsic
    def write(typing, place, number):
        def generate(context, builder, signature, arguments):
            builder.store(convert(builder, arguments[1]), _pointer(builder, arguments[0], kind))
            return context.get_dummy_value()

        return types.void(types.int64, given), generate

    return write


def _widened(builder, half):
    """bfloat16 is the upper half of a float32."""
    bits = builder.shl(builder.zext(half, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
    return builder.bitcast(bits, _FLOAT)


def _narrowed(builder, number):
    """The nearest bfloat16, the even one where two are as near; NaN stays NaN."""
    i32, i16 = ir.IntType(32), ir.IntType(16)
    bits = builder.bitcast(number, i32)
    upper = builder.lshr(bits, ir.Constant(i32, 16))
    last = builder.and_(upper, ir.Constant(i32, 1))
    rounded = builder.lshr(builder.add(bits, builder.add(last, ir.Constant(i32, 0x7FFF))), ir.Constant(i32, 16))
    is_nan = builder.fcmp_unordered("uno", number, number)
    return builder.trunc(builder.select(is_nan, builder.or_(upper, ir.Constant(i32, 0x40)), rounded), i16)


def _truth(builder, byte):
    return builder.uitofp(builder.icmp_unsigned("!=", byte, ir.Constant(byte.type, 0)), _FLOAT)


def _byte(builder, number):
    return builder.zext(builder.fcmp_unordered("!=", number, ir.Constant(_FLOAT, 0)), ir.IntType(8))


def _signed(builder, byte):
    return builder.sitofp(byte, _FLOAT)


def _shortened(builder, number):
    return builder.fptosi(number, ir.IntType(8))


def _same(builder, number):
    return number


read_int, write_int = _reader(_INDEX, types.int64, _same), _writer(_INDEX, types.int64, _same)
read_float, write_float = _reader(_FLOAT, types.float32, _same), _writer(_FLOAT, types.float32, _same)
read_half = _reader(ir.IntType(16), types.float32, _widened)
write_half = _writer(ir.IntType(16), types.float32, _narrowed)
read_bool = _reader(ir.IntType(8), types.float32, _truth)
write_bool = _writer(ir.IntType(8), types.float32, _byte)
read_byte = _reader(ir.IntType(8), types.float32, _signed)
write_byte = _writer(ir.IntType(8), types.float32, _shortened)


@intrinsic
def word(typing, place, index):
    """The 64-bit word number `index` after an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.gep(_pointer(builder, arguments[0], _INDEX), [arguments[1]]))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def float_of_bits(typing, bits):
    """The float32 whose bits are the lower half of an integer."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(builder.trunc(arguments[0], ir.IntType(32)), _FLOAT)

    return types.float32(types.int64), generate


@intrinsic
def store_everywhere(typing, place, number):
    """The number WIDTH times, from an address on."""

    def generate(context, builder, signature, arguments):
        access = VectorAccess(builder)
        access.store(access.broadcast(arguments[1]), _pointer(builder, arguments[0], _FLOAT))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def copy_lanes(typing, source, target, lanes):
    """WIDTH numbers to `target`: the first `lanes` are those at `source`, the others 0. No more than those are read."""

    def generate(context, builder, signature, arguments):
        source, target = (_pointer(builder, place, _FLOAT) for place in arguments[:2])
        found = VectorAccess(builder, first_lanes(builder, arguments[2])).load(source, masked=True)
        VectorAccess(builder).store(found, target)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


def _widener(kind, convert):
    """A function that brings WIDTH numbers of a narrow kind to `target` as float32, as `copy_lanes` does."""

    @intrinsic
    def widen(typing, source, target, lanes):
        def generate(context, builder, signature, arguments):
            narrow, mask = ir.VectorType(kind, WIDTH), first_lanes(builder, arguments[2])
            function = ir.FunctionType(narrow, [narrow.as_pointer(), ir.IntType(32), mask.type, narrow])
            name = f"llvm.masked.load.v{WIDTH}i{kind.width}.p0"
            load = cgutils.get_or_insert_function(builder.module, function, name)
            place, align = _pointer(builder, arguments[0], narrow), ir.Constant(ir.IntType(32), kind.width // 8)
            found = builder.call(load, [place, align, mask, ir.Constant(narrow, None)])
            VectorAccess(builder).store(convert(builder, found), _pointer(builder, arguments[1], _FLOAT))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64), generate

    return widen


def _wide_bytes(builder, numbers):
    return builder.sitofp(numbers, ir.VectorType(_FLOAT, WIDTH))


def _wide_halves(builder, numbers):
    wide = ir.VectorType(ir.IntType(32), WIDTH)
    bits = builder.shl(builder.zext(numbers, wide), ir.Constant(wide, [16] * WIDTH))
    return builder.bitcast(bits, ir.VectorType(_FLOAT, WIDTH))


widen_bytes, widen_halves = _widener(ir.IntType(8), _wide_bytes), _widener(ir.IntType(16), _wide_halves)


@intrinsic
def atomic_add(typing, place, number):
    """The integer at an address before `number` is added to it; what was written before is seen by who reads it."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _pointer(builder, arguments[0], _INDEX), arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_read(typing, place):
    """The integer at an address, and with it all that was written before it."""

    def generate(context, builder, signature, arguments):
        return builder.load_atomic(_pointer(builder, arguments[0], _INDEX), "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def rest(typing, times):
    """A moment's rest while waiting for another thread; once in many the processor is offered to others."""

    def generate(context, builder, signature, arguments):
        if _IS_X86:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause"), [])
        if sys.platform != "win32":
            often = builder.and_(arguments[0], ir.Constant(_INDEX, 1023))
            with builder.if_then(builder.icmp_signed("==", often, ir.Constant(_INDEX, 1023)), likely=False):
                kind = ir.FunctionType(ir.IntType(32), [])
                builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(types.int64), generate
