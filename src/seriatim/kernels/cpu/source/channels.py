"""What the selective scan does with a vector of WIDTH channels: powers of two, sums over lanes, chunks of tokens.

The N state values of these channels are N vectors, one after another in memory: value n of all channels is vector n.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.lanes import LANES, WIDTH, every, lanes, load, store
from seriatim.kernels.cpu.source.language import function
from seriatim.kernels.cpu.source.simd import transpose

__all__ = [
    "VECTOR",
    "clear_rows",
    "close_chunk",
    "copy_rows",
    "decay",
    "fused",
    "is_moderate",
    "lane_sums",
    "read_rates",
    "read_rows",
    "signed_decay",
]

VECTOR = 4 * WIDTH  # bytes of a vector
_FLOAT, _SMALL = ir.FloatType(), ir.IntType(32)
_FLOATS, _BITS = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_SMALL, WIDTH)
_ZERO, _ONE, _LOG2_E = np.float32(0), np.float32(1), np.float32(1.4426950408889634)
_ROUND = np.float32(12582912.0 + 127.0)  # 1.5 * 2^23 + 127: adding it rounds; the whole plus 127 is in the lowest bits
_MODERATE = np.float32(126)  # exponents up to this one are those of normal numbers
_SMALLEST, _LARGEST = np.float32(-127), np.float32(128)  # exponents whose powers come out as 0, and not finite
_P1 = np.float32(0.6931471824645996)  # 2^r - 1 = r (P1 + r (P2 + ...)) for |r| <= 1/2, a minimax fit
_P2 = np.float32(0.24022649228572845)
_P3 = np.float32(0.05550357326865196)
_P4 = np.float32(0.009618237614631653)
_P5 = np.float32(0.0013390735257416964)
_P6 = np.float32(0.00015403512225020677)


def _exact(python):
    """For code that must be computed in the order in which it is written."""
    return numba.njit(fastmath={"contract"}, error_model="numpy", boundscheck=False)(python)


def _call(builder, name, kind, arguments):
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def fused(typing, x, y, z):
    """x y + z, rounded once."""

    def generate(context, builder, signature, arguments):
        return _call(builder, f"llvm.fma.v{WIDTH}f32", ir.FunctionType(_FLOATS, [_FLOATS] * 3), arguments)

    return LANES(LANES, LANES, LANES), generate


@intrinsic
def _magnitude(typing, x):
    """|x|."""

    def generate(context, builder, signature, arguments):
        return _call(builder, f"llvm.fabs.v{WIDTH}f32", ir.FunctionType(_FLOATS, [_FLOATS]), arguments)

    return LANES(LANES), generate


def _extreme(comparison):
    @intrinsic
    def choose(typing, x, y):
        """The larger or the smaller of two numbers, x where one is NaN."""

        def generate(context, builder, signature, arguments):
            x, y = arguments
            return builder.select(builder.fcmp_ordered(comparison, y, x), y, x)

        return LANES(LANES, LANES), generate

    return choose


_larger, _smaller = _extreme(">"), _extreme("<")


@intrinsic
def _all_at_most(typing, x, y):
    """Whether x <= y in every lane; NaN is not."""

    def generate(context, builder, signature, arguments):
        which = builder.bitcast(builder.fcmp_ordered("<=", *arguments), ir.IntType(WIDTH))
        return builder.icmp_unsigned("==", which, ir.Constant(ir.IntType(WIDTH), (1 << WIDTH) - 1))

    return types.boolean(LANES, LANES), generate


@intrinsic
def _power_of_two(typing, rounded):
    """2^k from a number in whose lowest bits k + 127 stands."""

    def generate(context, builder, signature, arguments):
        bits = builder.bitcast(arguments[0], _BITS)
        return builder.bitcast(builder.shl(bits, ir.Constant(_BITS, [23] * WIDTH)), _FLOATS)

    return LANES(LANES), generate


@intrinsic
def lane_sums(typing, place):
    """Of the WIDTH vectors at a place the sum of each: lane i is that of vector i.

    Two vectors become one by adding up halves, until one is left: that is some 3 instructions a sum.
    """

    def generate(context, builder, signature, arguments):
        first = builder.inttoptr(arguments[0], _FLOATS.as_pointer())
        vectors = [builder.load(builder.gep(first, [ir.Constant(_SMALL, i)]), align=4) for i in range(WIDTH)]
        half = WIDTH // 2
        while half:
            kept = [i + WIDTH * (i & half != 0) for i in range(WIDTH)]  # of a pair, the lanes that stay where they are
            moved = [(i ^ half) + WIDTH * (i & half != 0) for i in range(WIDTH)]  # and those that are added to them
            orders = [ir.Constant(_BITS, order) for order in (kept, moved)]
            pairs = zip(vectors[:half], vectors[half:], strict=True)
            vectors = [builder.fadd(*(builder.shuffle_vector(x, y, order) for order in orders)) for x, y in pairs]
            half //= 2
        return vectors[0]

    return LANES(types.uintp), generate


@function
def clear_rows(place, rows):
    """As many vectors of 0."""
    for n in range(rows):
        store(every(_ZERO), place + VECTOR * n, lanes(WIDTH))


@function
def copy_rows(target, source, rows):
    """As many vectors."""
    for n in range(rows):
        store(load(source + VECTOR * n, lanes(WIDTH)), target + VECTOR * n, lanes(WIDTH))


@function
def read_rows(target, source, step, count, rows):
    """The transpose of `count` lines of memory with `rows` numbers each, `step` apart; 0 in the other lanes."""
    if count < WIDTH:
        clear_rows(target, rows)
    transpose(count, rows, source, step, target, WIDTH)


@function
def read_rates(target, source, step, count, rows):
    """The same times log2(e), so that e^x is a power of two. Returns the largest magnitude in each lane."""
    read_rows(target, source, step, count, rows)
    steepest = every(_ZERO)
    for n in range(rows):
        rate = every(_LOG2_E) * load(target + VECTOR * n, lanes(WIDTH))
        store(rate, target + VECTOR * n, lanes(WIDTH))
        steepest = _larger(steepest, _magnitude(rate))
    return steepest


@function
def is_moderate(step, steepest):
    """Whether 2^(step rate) is a normal number for all rates, of which the steepest is given."""
    return _all_at_most(_magnitude(step) * steepest, every(_MODERATE))


@_exact
def _power(step, rate, moderate):
    """(2^whole, 2^rest - 1) where step * rate = whole + rest and |rest| <= 1/2."""
    if moderate:
        rounded = fused(step, rate, every(_ROUND))
        rest = fused(step, rate, every(_ROUND) - rounded)
    else:
        exponent = _smaller(_larger(step * rate, every(_SMALLEST)), every(_LARGEST))
        rounded = exponent + every(_ROUND)
        rest = exponent + (every(_ROUND) - rounded)
    p = fused(every(_P6), rest, every(_P5))
    p = fused(p, rest, every(_P4))
    p = fused(p, rest, every(_P3))
    p = fused(p, rest, every(_P2))
    p = fused(p, rest, every(_P1))
    return _power_of_two(rounded), p * rest


@_exact
def decay(step, rate, moderate):
    """2^(step rate)."""
    whole, part = _power(step, rate, moderate)
    return fused(whole, part, whole)


@_exact
def signed_decay(step, rate, moderate):
    """2 2^(step rate) - 1, rounded but once: twice the power of two less 1 is exact."""
    whole, part = _power(step, rate, moderate)
    twice = whole + whole
    return fused(twice, part, twice - every(_ONE))


@_exact
def decayed(h, step, rate, moderate, more):
    """2^(step rate) h + more, rounded but once where the power is nearly 1: what hardly decays is so for long."""
    whole, part = _power(step, rate, moderate)
    return fused(whole, h, fused(whole * part, h, more))


@function
def close_chunk(running, local, before, rates, rows, span, steepest):
    """What runs through a chunk, once more: 2^(span rates) times what it was before, and what the chunk itself gave.

    Of the rounding of every token since, only that in `local` is left, which is small as long as the chunk is short.
    """
    whole, moderate = lanes(WIDTH), is_moderate(span, steepest)
    for n in range(rows):
        at = VECTOR * n
        old, more = load(before + at, whole), load(local + at, whole)
        store(decayed(old, span, load(rates + at, whole), moderate, more), running + at, whole)
