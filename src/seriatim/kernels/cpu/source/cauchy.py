"""Kernels of the Cauchy product with conjugate symmetry: sums of two conjugate fractions in real coefficients.

Dimensions: G systems, J products of each, N poles, L nodes. With a pole w = r + i s, a node z = x + i y, q = z - r,
a = 2 Re(v) and b = 2 Im(v) s,

v / (z - w) + v* / (z - w*) = a X - b R,     R = 1 / (q^2 + s^2),     X = q R.

R is computed from (x - r)^2 + (s - y)(s + y), where no two nearly equal rounded numbers are subtracted, and so keeps
its digits beside a pole. With the gradient g of the product, S = a X - b R and all products' terms summed under g,

da = Re(g* X),   db = -Re(g* R),   dr = Re(g* (2 S X - a R)),   ds = -2 s Re(g* S R).
"""

import numpy as np

from seriatim.kernels.cpu.source.lanes import WIDTH, every, lanes, load, number, store, sum_of, where
from seriatim.kernels.cpu.source.language import (
    Address,
    Floats2,
    Floats3,
    Floats4,
    Index,
    address,
    function,
    kernel,
)

__all__ = ["backward", "forward"]

VECTOR = 4 * WIDTH  # bytes
ZERO, ONE, TWO = np.float32(0), np.float32(1), np.float32(2)


@kernel
def forward(
    item: Index,
    scratch: Address,
    a: Floats3,
    b: Floats3,
    real: Floats2,
    imaginary: Floats2,
    nodes: Floats2,
    block: Index,
    out: Floats4,
):
    """out (G, J, 2, L), real and imaginary parts. An item is `block` nodes of a system. scratch: 2 J WIDTH."""
    products, poles, count = a.shape[1], a.shape[2], nodes.shape[1]
    blocks = (count + block - 1) // block
    g, begin = item // blocks, item % blocks * block
    for first in range(begin, min(count, begin + block), WIDTH):
        some, whole = lanes(count - first), lanes(WIDTH)
        x, y = _nodes(nodes, first, some)
        _clear(scratch, 2 * products)
        for n in range(poles):
            X, iX, R, iR = _resolvent(x, y, real[g, n], imaginary[g, n])
            for j in range(products):
                p, q, place = number(address(a, g, j, n)), number(address(b, g, j, n)), scratch + 2 * VECTOR * j
                store(load(place, whole) + p * X - q * R, place, whole)
                store(load(place + VECTOR, whole) + p * iX - q * iR, place + VECTOR, whole)
        for j in range(products):
            store(load(scratch + 2 * VECTOR * j, whole), address(out, g, j, 0, first), some)
            store(load(scratch + 2 * VECTOR * j + VECTOR, whole), address(out, g, j, 1, first), some)


@kernel
def backward(
    item: Index,
    scratch: Address,
    grad: Floats4,
    a: Floats3,
    b: Floats3,
    real: Floats2,
    imaginary: Floats2,
    nodes: Floats2,
    grad_a: Floats3,
    grad_b: Floats3,
    grad_real: Floats2,
    grad_imaginary: Floats2,
):
    """The gradients of all but the nodes. An item is a system. scratch: 2 (J + 1) N WIDTH."""
    products, poles, count = a.shape[1], a.shape[2], nodes.shape[1]
    g, whole, size = item, lanes(WIDTH), 2 * VECTOR * (products + 1)
    _clear(scratch, 2 * (products + 1) * poles)
    for first in range(0, count, WIDTH):
        some = lanes(count - first)
        x, y = _nodes(nodes, first, some)
        for n in range(poles):
            X, iX, R, iR = _resolvent(x, y, real[g, n], imaginary[g, n])
            sums = scratch + size * n
            alpha, i_alpha, beta, i_beta = every(ZERO), every(ZERO), every(ZERO), every(ZERO)
            for j in range(products):
                d = load(address(grad, g, j, 0, first), some)
                e = load(address(grad, g, j, 1, first), some)
                p, q = number(address(a, g, j, n)), number(address(b, g, j, n))
                alpha, i_alpha = alpha + p * d, i_alpha + p * e
                beta, i_beta = beta + q * d, i_beta + q * e
                _add(sums + 2 * VECTOR * j, d * X + e * iX)
                _add(sums + 2 * VECTOR * j + VECTOR, d * R + e * iR)
            # of g* S, with the conjugate gradient alpha - i i_alpha
            S = alpha * X + i_alpha * iX - beta * R - i_beta * iR
            iS = alpha * iX - i_alpha * X - beta * iR + i_beta * R
            last = sums + 2 * VECTOR * products
            _add(last, (S * X - iS * iX) * TWO - alpha * R - i_alpha * iR)
            _add(last + VECTOR, S * R - iS * iR)
    for n in range(poles):
        sums = scratch + size * n
        for j in range(products):
            grad_a[g, j, n] = sum_of(load(sums + 2 * VECTOR * j, whole))
            grad_b[g, j, n] = -sum_of(load(sums + 2 * VECTOR * j + VECTOR, whole))
        last = sums + 2 * VECTOR * products
        grad_real[g, n] = sum_of(load(last, whole))
        grad_imaginary[g, n] = -TWO * imaginary[g, n] * sum_of(load(last + VECTOR, whole))


@function
def _nodes(nodes, first, some):
    """Real and imaginary parts of a vector of nodes. Lanes without a node repeat the first: 0 might be a pole."""
    x, y = load(address(nodes, 0, first), some), load(address(nodes, 1, first), some)
    return where(some, x, number(address(nodes, 0, first))), where(some, y, number(address(nodes, 1, first)))


@function
def _resolvent(x, y, r, s):
    """X and R, their real and imaginary parts, at nodes x + i y of a pole r + i s."""
    p, beside = x - r, every(s)
    square, twice = p * p + (beside - y) * (beside + y), (p + p) * y
    inverse = every(ONE) / (square * square + twice * twice)
    R, iR = square * inverse, every(ZERO) - twice * inverse
    return p * R - y * iR, p * iR + y * R, R, iR


@function
def _add(place, value):
    whole = lanes(WIDTH)
    store(load(place, whole) + value, place, whole)


@function
def _clear(place, vectors):
    whole = lanes(WIDTH)
    for i in range(vectors):
        store(every(ZERO), place + VECTOR * i, whole)
