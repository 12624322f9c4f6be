"""Elementary functions that only step programs need, beside those of `functions`. Polynomials are fits of our own."""

import math

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from seriatim.kernels.cpu.source.functions import exp, sigmoid, tanh

__all__ = ["erf", "exact", "gelu", "gelu_tanh", "log", "silu"]

_f = np.float32
_SQRT_HALF = _f(0.7071067811865476)


def exact(python):
    """For code that must be computed in the order in which it is written."""
    return numba.njit(fastmath={"contract"}, error_model="numpy", boundscheck=False)(python)


@intrinsic
def _magnitude(typing, x):
    """|x|."""

    def generate(context, builder, signature, arguments):
        return builder.call(builder.module.declare_intrinsic("llvm.fabs", [ir.FloatType()]), arguments)

    return types.float32(types.float32), generate


@intrinsic
def _parts(typing, x):
    """(m, e) with x = m 2^e and m between sqrt(1/2) and sqrt(2), for positive normal numbers."""
    result = types.Tuple([types.float32, types.float32])

    def generate(context, builder, signature, arguments):
        i32 = ir.IntType(32)
        bits = builder.bitcast(arguments[0], i32)
        shifted = builder.sub(bits, ir.Constant(i32, 0x3F3504F3))  # the bits of sqrt(1/2)
        exponent = builder.ashr(shifted, ir.Constant(i32, 23))
        mantissa = builder.sub(bits, builder.shl(exponent, ir.Constant(i32, 23)))
        parts = [builder.bitcast(mantissa, ir.FloatType()), builder.sitofp(exponent, ir.FloatType())]
        return context.make_tuple(builder, result, parts)

    return result(types.float32), generate


@exact
def log(x):
    """2 artanh((m - 1) / (m + 1)) + e log 2. NaN below 0, -inf at 0."""
    m, e = _parts(x)
    s = (m - _f(1)) / (m + _f(1))
    z = s * s
    p = _f(0.180149644613266)
    p = p * z + _f(0.287893146276474)
    p = p * z + _f(0.39997434616088867)
    p = p * z + _f(0.6666666865348816)
    found = e * _f(0.693359375) + ((s + s) + (s * (z * p) + e * _f(-2.12194440e-4)))
    found = found if x < _f(np.inf) else x  # infinity and NaN
    found = found if x > _f(0) else _f(-np.inf)
    return _f(np.nan) if x < _f(0) or x != x else found


@exact
def erf(x):
    """An odd polynomial near 0, 1 - t e^(-x^2 + poly(t)) with t = 1 / (1 + |x| / 2) elsewhere."""
    size, z = _magnitude(x), x * x
    p = _f(-0.0006761095719411969)
    p = p * z + _f(0.005115981679409742)
    p = p * z + _f(-0.026835434138774872)
    p = p * z + _f(0.11283393204212189)
    p = p * z + _f(-0.3761261999607086)
    p = p * z + _f(1.1283791065216064)
    t = _f(1) / (_f(1) + _f(0.5) * size)
    q = _f(0.09761016070842743)
    q = q * t + _f(-0.3929271697998047)
    q = q * t + _f(0.4440981149673462)
    q = q * t + _f(-0.004204988479614258)
    q = q * t + _f(0.2987556755542755)
    q = q * t + _f(0.2739979028701782)
    q = q * t + _f(0.28262677788734436)
    far = _f(1) - t * exp(-z) * q
    far = far if x > _f(0) else -far
    return x * p if size < _f(0.75) else far


@exact
def gelu(x):
    """x times the probability that a normal variable is below it."""
    return _f(0.5) * x * (_f(1) + erf(x * _SQRT_HALF))


@exact
def gelu_tanh(x):
    """The same, approximated through tanh."""
    inner = _f(math.sqrt(2 / math.pi)) * (x + _f(0.044715) * (x * x * x))
    return _f(0.5) * x * (_f(1) + tanh(inner))


@exact
def silu(x):
    """x / (1 + e^-x)."""
    return x * sigmoid(x)
