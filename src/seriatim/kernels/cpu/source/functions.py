"""Elementary functions of float32 in operations that vectorise, right to 3 units in the last place or better.

Infinities and NaN give what the mathematics gives, results below the normal range lose precision gradually. Polynomials
are minimax fits of this project's own. Loops over arrays that call these become vector code.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

__all__ = ["exp", "log_sigmoid", "sigmoid", "softplus", "tanh"]

_f = np.float32
_LOG2_E = _f(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)  # the first has few bits, so that products with it are exact
_ROUND = _f(12582912.0)  # 1.5 * 2^23: adding it rounds to a whole number, which then stands in the lowest bits


def _exact(python):
    """For code that must be computed in the order in which it is written."""
    return numba.njit(fastmath={"contract"}, error_model="numpy", boundscheck=False)(python)


@intrinsic
def _bits(typing, x):
    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def _power_of_two(typing, exponent):
    """2^exponent, for exponents of normal numbers."""

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        shifted = builder.shl(builder.add(arguments[0], ir.Constant(i32, 127)), ir.Constant(i32, 23))
        return builder.bitcast(shifted, ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def _halved(typing, x):
    """x >> 1 on 32 bits (numba would widen it to 64)."""

    def generate(context, builder, signature, arguments):
        return builder.ashr(arguments[0], ir.Constant(ir.IntType(32), 1))

    return types.int32(types.int32), generate


@intrinsic
def _difference(typing, x, y):
    """x - y on 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.sub(*arguments)

    return types.int32(types.int32, types.int32), generate


@intrinsic
def _magnitude(typing, x):
    """|x|."""

    def generate(context, builder, signature, arguments):
        absolute = builder.module.declare_intrinsic("llvm.fabs", [ir.FloatType()])
        return builder.call(absolute, arguments)

    return types.float32(types.float32), generate


@intrinsic
def _with_sign(typing, x, sign):
    """|x| with the sign of `sign`."""

    def generate(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()] * 2)
        copy = builder.module.declare_intrinsic("llvm.copysign", [ir.FloatType()], kind)
        return builder.call(copy, arguments)

    return types.float32(types.float32, types.float32), generate


@_exact
def exp(x):
    """e^x = 2^whole e^rest with |rest| <= ln(2) / 2. The power of two is applied in halves: it cannot overflow."""
    x = x if not x > _f(89.0) else _f(89.0)  # e^89 is already infinite; NaN stays
    x = x if not x < _f(-104.0) else _f(-104.0)  # e^-104 is already 0
    rounded = x * _LOG2_E + _ROUND
    whole = rounded - _ROUND
    rest = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    p = _f(0.0013901280472055078)
    p = p * rest + _f(0.008363140746951103)
    p = p * rest + _f(0.04166685417294502)
    p = p * rest + _f(0.16666577756404877)
    p = p * rest + _f(0.5)
    p = p * (rest * rest) + rest
    exponent = _difference(_bits(rounded), _bits(_ROUND))
    half = _halved(exponent)
    return (p + _f(1)) * _power_of_two(half) * _power_of_two(_difference(exponent, half))


@_exact
def sigmoid(x):
    """1 / (1 + e^-x)."""
    e = exp(-_magnitude(x))
    return (e if x < _f(0) else _f(1)) / (_f(1) + e)


@_exact
def tanh(x):
    """An odd polynomial near 0, 1 - 2 / (e^2|x| + 1) elsewhere."""
    size = _magnitude(x)
    z = x * x
    p = _f(0.0022928286343812943)
    p = p * z + _f(-0.008344028145074844)
    p = p * z + _f(0.021768946200609207)
    p = p * z + _f(-0.05395926535129547)
    p = p * z + _f(0.13333304226398468)
    p = p * z + _f(-0.3333333432674408)
    near = _with_sign(x + x * (z * p), x)  # -0 stays -0
    far = _with_sign(_f(1) - _f(2) / (exp(size + size) + _f(1)), x)
    return near if size < _f(0.625) else far


@_exact
def _log1p(e):
    """log(1 + e) for 0 <= e <= 1: 2 artanh(e / (2 + e))."""
    s = e / (_f(2) + e)
    z = s * s
    p = _f(0.23233556747436523)
    p = p * z + _f(0.21704533696174622)
    p = p * z + _f(0.2859250009059906)
    p = p * z + _f(0.3999970257282257)
    p = p * z + _f(0.6666666865348816)
    return (s + s) + s * (z * p)


@_exact
def softplus(x):
    """log(1 + e^x)."""
    return (x if not x < _f(0) else _f(0)) + _log1p(exp(-_magnitude(x)))


@_exact
def log_sigmoid(x):
    """log(1 / (1 + e^-x))."""
    return -softplus(-x)
