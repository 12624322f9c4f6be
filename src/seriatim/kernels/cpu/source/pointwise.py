"""What lies between the products of a layer: SiLU, a product gated by it, and the root mean square norm.

An item is a block of rows. Each row is read once from memory.
"""

import math

import numpy as np

from seriatim.kernels.cpu.source.functions import sigmoid
from seriatim.kernels.cpu.source.language import Address, Floats1, Floats2, Index, Real, function, kernel, line

__all__ = ["rms_norm", "rms_norm_backward", "silu_gate", "silu_gate_backward"]


@function
def _scale(u, epsilon):
    """1 / sqrt(mean(u^2) + epsilon)."""
    total = np.float32(0)
    for i in range(u.size):
        total += u[i] * u[i]
    return np.float32(1) / np.float32(math.sqrt(total / np.float32(u.size) + epsilon))


@kernel
def silu_gate(item: Index, scratch: Address, block: Index, x: Floats2, gate: Floats2, y: Floats2):
    """y = x silu(gate), or silu(gate) where x is left out."""
    for row in range(item * block, min(y.shape[0], (item + 1) * block)):
        out, g = line(y, row), line(gate, row)
        if x.size == 0:
            for i in range(out.size):
                out[i] = g[i] * sigmoid(g[i])
        else:
            factor = line(x, row)
            for i in range(out.size):
                out[i] = factor[i] * (g[i] * sigmoid(g[i]))


@kernel
def silu_gate_backward(
    item: Index,
    scratch: Address,
    block: Index,
    grad: Floats2,
    x: Floats2,
    gate: Floats2,
    grad_x: Floats2,
    grad_gate: Floats2,
):
    """silu'(g) = s (1 + g (1 - s)) with s = sigmoid(g)."""
    one = np.float32(1)
    for row in range(item * block, min(grad.shape[0], (item + 1) * block)):
        above, g, below = line(grad, row), line(gate, row), line(grad_gate, row)
        if x.size == 0:
            for i in range(g.size):
                s = sigmoid(g[i])
                below[i] = above[i] * (s * (one + g[i] * (one - s)))
        else:
            factor, below_x = line(x, row), line(grad_x, row)
            for i in range(g.size):
                s = sigmoid(g[i])
                below_x[i] = above[i] * (g[i] * s)
                below[i] = above[i] * factor[i] * (s * (one + g[i] * (one - s)))


@kernel
def rms_norm(item: Index, scratch: Address, block: Index, x: Floats2, weight: Floats1, epsilon: Real, y: Floats2):
    """y = weight x / sqrt(mean(x^2) + epsilon)."""
    for row in range(item * block, min(y.shape[0], (item + 1) * block)):
        u, out = line(x, row), line(y, row)
        scale = _scale(u, epsilon)
        w = line(weight)
        for i in range(out.size):
            out[i] = u[i] * scale * w[i]


@kernel
def rms_norm_backward(
    item: Index,
    scratch: Address,
    block: Index,
    grad: Floats2,
    x: Floats2,
    weight: Floats1,
    epsilon: Real,
    grad_x: Floats2,
    sums: Floats2,
):
    """With r the scale: grad_x = r w grad - x r^3 mean(x w grad). The sum over rows of grad x r goes to `sums`."""
    w, total = line(weight), line(sums, item)
    for i in range(total.size):
        total[i] = np.float32(0)
    for row in range(item * block, min(grad.shape[0], (item + 1) * block)):
        u, above, below = line(x, row), line(grad, row), line(grad_x, row)
        scale = _scale(u, epsilon)
        along = np.float32(0)
        for i in range(u.size):
            along += u[i] * w[i] * above[i]
        pull = along / np.float32(u.size) * scale * scale * scale
        for i in range(u.size):
            below[i] = scale * w[i] * above[i] - u[i] * pull
            total[i] += above[i] * u[i] * scale
