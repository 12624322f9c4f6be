"""The sLSTM's part of cell_equations.py: exponential gates with a stabiliser.

The slots of the input and the forget gate stay as they are. The states are the cell c, the normaliser n and the
stabiliser m; n = 0 is nothing read, as if m were -inf.

m is a gauge: with outputs alone its gradient is grad_c c + grad_n n, of which a token takes the input gate's share and
passes on the forget gate's. The share of the gate that set the maximum is found as what the other one leaves of the
whole. To compute it like the other's would lose it in rounding: it is the difference of two terms that are much larger.
"""

import numba
import numpy as np

from seriatim.kernels.cpu.source.functions import exp, log_sigmoid, sigmoid, tanh
from seriatim.kernels.cpu.source.language import vector

__all__ = ["with_exponential_forget_gate", "with_sigmoid_forget_gate"]

_ZERO, _HALF, _ONE, _NOTHING = np.float32(0), np.float32(0.5), np.float32(1), np.float32(-np.inf)
_LOWEST = np.float32(np.finfo(np.float32).min)


def _exact(python):
    """For code that must be computed in the order in which it is written."""
    return numba.njit(fastmath={"contract"}, error_model="numpy", boundscheck=False)(python)


@_exact
def _same(x):
    return x


@_exact
def _one(x):
    return _ONE


@_exact
def _mirrored_sigmoid(x):
    return sigmoid(-x)


@_exact
def _not_zero(total):
    """1 where nothing was read: there the cell is 0, and 0 / 1 is what is shown."""
    return total if total != _ZERO else _ONE


def _gates_of(log_gate):
    @_exact
    def gates(a, f, total, m):
        """The new stabiliser, both gates, and whether the input gate set the stabiliser (at a tie, by half)."""
        last = m if total != _ZERO else _NOTHING
        log_forget = log_gate(f)
        kept = log_forget + last
        new_m = a if a > kept else kept
        finite = new_m if new_m > _LOWEST else _LOWEST  # never (-inf) - (-inf)
        newest = _ONE if a > kept else (_HALF if a == kept else _ZERO)
        # The stabiliser is taken off the last one first, so that what rounding took from their sum is not lost.
        return new_m, exp(a - finite), exp(log_forget + (last - finite)), newest

    return gates


def _cell(log_gate, slope):
    """forward, again and backward with that logarithm of the forget gate, of that slope."""
    gates = _gates_of(log_gate)

    @_exact
    def forward(n, slots, far, others, new_hidden, new_others):
        a, f, z, o = vector(slots, n), vector(slots + far, n), vector(slots + 2 * far, n), vector(slots + 3 * far, n)
        c, total, m = vector(others, n), vector(others + 4 * n, n), vector(others + 8 * n, n)
        new_c, new_total = vector(new_others, n), vector(new_others + 4 * n, n)
        new_m, h = vector(new_others + 8 * n, n), vector(new_hidden, n)
        for d in range(n):  # three loops: one has too much to hold in registers
            z[d], o[d] = tanh(z[d]), sigmoid(o[d])
        for d in range(n):
            new_m[d], opened, forget, _ = gates(a[d], f[d], total[d], m[d])
            new_c[d] = forget * c[d] + opened * z[d]
            new_total[d] = forget * total[d] + opened
        for d in range(n):
            h[d] = o[d] * new_c[d] / _not_zero(new_total[d])

    @_exact
    def again(n, slots, far, others, new_others, extra):
        a, f, z = vector(slots, n), vector(slots + far, n), vector(slots + 2 * far, n)
        c, total, m = vector(others, n), vector(others + 4 * n, n), vector(others + 8 * n, n)
        new_c, new_total = vector(new_others, n), vector(new_others + 4 * n, n)
        new_m, opened = vector(new_others + 8 * n, n), vector(extra, n)
        forget, newest = vector(extra + 4 * n, n), vector(extra + 8 * n, n)
        for d in range(n):
            new_m[d], opened[d], forget[d], newest[d] = gates(a[d], f[d], total[d], m[d])
            new_c[d] = forget[d] * c[d] + opened[d] * z[d]
            new_total[d] = forget[d] * total[d] + opened[d]

    return forward, again, _backward_of(slope)


def _backward_of(slope):
    @_exact
    def backward(n, slots, far, extra, others, new_others, grad_hidden, grad_others, grads, step):
        f, z, o = vector(slots + far, n), vector(slots + 2 * far, n), vector(slots + 3 * far, n)
        c, total, new_c, new_total = (
            vector(others, n), vector(others + 4 * n, n), vector(new_others, n), vector(new_others + 4 * n, n)
        )  # fmt: skip
        opened, forget, newest = vector(extra, n), vector(extra + 4 * n, n), vector(extra + 8 * n, n)
        grad_h, grad_c = vector(grad_hidden, n), vector(grad_others, n)
        grad_total, grad_m = vector(grad_others + 4 * n, n), vector(grad_others + 8 * n, n)
        grad_a, grad_f = vector(grads, n), vector(grads + step, n)
        grad_z, grad_o = vector(grads + 2 * step, n), vector(grads + 3 * step, n)
        for d in range(n):
            inverse = _ONE / _not_zero(new_total[d])
            mean, shown = new_c[d] * inverse, grad_h[d] * o[d] * inverse
            of_c, of_total = grad_c[d] + shown, grad_total[d] - shown * mean
            of_input, of_kept = opened[d] * (of_c * z[d] + of_total), forget[d] * (of_c * c[d] + of_total * total[d])
            passed = newest[d] * of_kept + (_ONE - newest[d]) * (grad_m[d] - of_input)
            grad_a[d] = newest[d] * (grad_m[d] - of_kept) + (_ONE - newest[d]) * of_input
            grad_f[d] = passed * slope(f[d])
            grad_z[d] = of_c * opened[d] * (_ONE - z[d] * z[d])
            grad_o[d] = grad_h[d] * mean * (o[d] * (_ONE - o[d]))
            grad_c[d], grad_total[d] = of_c * forget[d], of_total * forget[d]
            grad_m[d] = passed if total[d] != _ZERO else _ZERO

    return backward


with_sigmoid_forget_gate = _cell(log_sigmoid, _mirrored_sigmoid)
with_exponential_forget_gate = _cell(_same, _one)
