"""The steps of diagonal_scan: one token, for some features, with what is carried in float64.

With `pairs` 1, two numbers in a row are the real and imaginary part of one. Of n numbers n float64s are carried, as the
numbers lie, or for pairs all the real parts before all the imaginary ones, which makes them vectors.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from seriatim.kernels.cpu.source.language import function, vector

__all__ = ["add", "advance", "clear", "doubles", "retreat", "write"]

ZERO = np.float64(0)


@intrinsic
def doubles(typing, place, length):
    """The float64s at a place, as an array."""
    kind = types.Array(types.float64, 1, "C")

    def generate(context, builder, signature, arguments):
        size = ir.Constant(ir.IntType(64), 8)
        array = make_array(kind)(context, builder)
        data = builder.inttoptr(arguments[0], ir.DoubleType().as_pointer())
        populate_array(array, data=data, shape=[arguments[1]], strides=[size], itemsize=size, meminfo=None)
        return array._getvalue()

    return kind(types.uintp, types.int64), generate


@function
def clear(carried):
    """carried = 0."""
    for i in range(carried.size):
        carried[i] = ZERO


@function
def add(carried, place, pairs):
    """carried += the numbers at a place."""
    given, n = vector(place, carried.size), carried.size // 2
    if pairs == 1:
        for i in range(n):
            carried[i] += np.float64(given[2 * i])
            carried[n + i] += np.float64(given[2 * i + 1])
    else:
        for i in range(carried.size):
            carried[i] += np.float64(given[i])


@function
def write(place, carried, pairs):
    """The numbers at a place = carried."""
    out, n = vector(place, carried.size), carried.size // 2
    if pairs == 1:
        for i in range(n):
            out[2 * i] = np.float32(carried[i])
            out[2 * i + 1] = np.float32(carried[n + i])
    else:
        for i in range(carried.size):
            out[i] = np.float32(carried[i])


@function
def advance(carried, factors, values, target, pairs):
    """carried = factor carried + value, written to `target` too."""
    n = carried.size
    factor, value, out = vector(factors, n), vector(values, n), vector(target, n)
    if pairs == 1:
        _advance_pairs(carried, factor, value, out)
    else:
        for i in range(n):
            carried[i] = np.float64(factor[i]) * carried[i] + np.float64(value[i])
            out[i] = np.float32(carried[i])


@function
def _advance_pairs(carried, factor, value, out):
    n = out.size // 2
    for i in range(n):
        re, im, x, y = np.float64(factor[2 * i]), np.float64(factor[2 * i + 1]), carried[i], carried[n + i]
        real = re * x - im * y + np.float64(value[2 * i])
        imag = re * y + im * x + np.float64(value[2 * i + 1])
        carried[i] = real
        carried[n + i] = imag
        out[2 * i] = np.float32(real)
        out[2 * i + 1] = np.float32(imag)


@function
def retreat(carried, sums, factors, before, values, target, slopes, pairs):
    """g = carried + value goes to `target`; carried = conj(factor) g. `slopes` or sums: where g conj(before) goes."""
    n = carried.size
    factor, old, value = vector(factors, n), vector(before, n), vector(values, n)
    out, slope = vector(target, n), vector(slopes, n)
    if pairs == 1:
        if sums.size > 0:
            _retreat_pairs_adding(carried, sums, factor, old, value, out)
        else:
            _retreat_pairs(carried, slope, factor, old, value, out)
    elif sums.size > 0:
        for i in range(n):
            g = carried[i] + np.float64(value[i])
            out[i] = np.float32(g)
            sums[i] += g * np.float64(old[i])
            carried[i] = g * np.float64(factor[i])
    else:
        for i in range(n):
            g = carried[i] + np.float64(value[i])
            out[i] = np.float32(g)
            slope[i] = np.float32(g * np.float64(old[i]))
            carried[i] = g * np.float64(factor[i])


@function
def _retreat_pairs(carried, slope, factor, old, value, out):
    n = out.size // 2
    for i in range(n):
        re, im, x, y = np.float64(factor[2 * i]), np.float64(factor[2 * i + 1]), old[2 * i], old[2 * i + 1]
        real, imag = carried[i] + np.float64(value[2 * i]), carried[n + i] + np.float64(value[2 * i + 1])
        out[2 * i] = np.float32(real)
        out[2 * i + 1] = np.float32(imag)
        slope[2 * i] = np.float32(real * np.float64(x) + imag * np.float64(y))
        slope[2 * i + 1] = np.float32(imag * np.float64(x) - real * np.float64(y))
        carried[i] = re * real + im * imag
        carried[n + i] = re * imag - im * real


@function
def _retreat_pairs_adding(carried, sums, factor, old, value, out):
    n = out.size // 2
    for i in range(n):
        re, im, x, y = np.float64(factor[2 * i]), np.float64(factor[2 * i + 1]), old[2 * i], old[2 * i + 1]
        real, imag = carried[i] + np.float64(value[2 * i]), carried[n + i] + np.float64(value[2 * i + 1])
        out[2 * i] = np.float32(real)
        out[2 * i + 1] = np.float32(imag)
        sums[i] += real * np.float64(x) + imag * np.float64(y)
        sums[n + i] += imag * np.float64(x) - real * np.float64(y)
        carried[i] = re * real + im * imag
        carried[n + i] = re * imag - im * real
