"""Kernels that measure and test the pieces the others are made of."""

import numpy as np

from seriatim.kernels.cpu.source.functions import exp, log_sigmoid, sigmoid, softplus, tanh
from seriatim.kernels.cpu.source.language import (
    Address,
    Floats1,
    Floats2,
    Floats3,
    Index,
    address,
    gradual_kernel,
    kernel,
    vector,
)
from seriatim.kernels.cpu.source.simd import multiply, transpose

__all__ = ["astray", "elementary", "peak", "product", "transposed"]


@kernel
def peak(item: Index, scratch: Address, repeats: Index, size: Index):
    """Square products of matrices that stay in the first level cache: what the machine can do."""
    square = 4 * size * size
    numbers = vector(scratch, 3 * size * size)
    for i in range(numbers.size):
        numbers[i] = np.float32(1)
    for _ in range(repeats):
        multiply(size, size, size, scratch, size, 1, scratch + square, size, scratch + 2 * square, size, 0)


@kernel
def product(item: Index, scratch: Address, a: Floats3, b: Floats3, c: Floats3, transposed_a: Index, keep: Index):
    """C = A B or C += A B; with transposed_a, A is given as its transpose."""
    a_row, a_column = a.strides[1] // 4, 1
    if transposed_a == 1:
        a_row, a_column = a_column, a_row
    inner, columns = b.shape[1], b.shape[2]
    where_a, where_b, where_c = address(a, item), address(b, item), address(c, item)
    b_row, c_row = b.strides[1] // 4, c.strides[1] // 4
    multiply(c.shape[1], columns, inner, where_a, a_row, a_column, where_b, b_row, where_c, c_row, keep)


@kernel
def transposed(item: Index, scratch: Address, source: Floats2, target: Floats2):
    """target = source^T."""
    rows, columns = source.shape
    transpose(rows, columns, address(source, 0), source.strides[0] // 4, address(target, 0), target.strides[0] // 4)


@kernel
def astray(item: Index, scratch: Address, x: Floats1, where: Index):
    """Writes beside x, where a test says so: the fences of the debug mode must notice."""
    vector(address(x, 0) + 4 * where, 1)[0] = x[0]


@gradual_kernel
def elementary(item: Index, scratch: Address, which: Index, x: Floats1, y: Floats1):
    """One of the elementary functions: 0 exp, 1 sigmoid, 2 tanh, 3 softplus, 4 log_sigmoid."""
    n = x.shape[0]
    if which == 0:
        for i in range(n):
            y[i] = exp(x[i])
    elif which == 1:
        for i in range(n):
            y[i] = sigmoid(x[i])
    elif which == 2:
        for i in range(n):
            y[i] = tanh(x[i])
    elif which == 3:
        for i in range(n):
            y[i] = softplus(x[i])
    else:
        for i in range(n):
            y[i] = log_sigmoid(x[i])
