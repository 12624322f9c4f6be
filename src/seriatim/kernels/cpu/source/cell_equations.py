"""What each cell computes for every feature of every row of a token, forward and backward. The products come elsewhere.

All arrays hold n numbers: the rows of a token side by side. A token has *slots*: for each gate, in the order of
`cell_scan`'s gates, the sum of what the token and the product with the state before it say. A cell whose last gate
takes these two apart has the token's part in that gate's slot and the product's in one more. The forward pass leaves in
the slots what the backward pass needs. Slots lie `far` bytes from each other, gradients of slots `step` bytes; the
states beside the hidden one side by side.
"""

import numpy as np

from seriatim.kernels.cpu.source.cell_slstm import with_exponential_forget_gate, with_sigmoid_forget_gate
from seriatim.kernels.cpu.source.functions import sigmoid, tanh
from seriatim.kernels.cpu.source.language import function, vector

__all__ = ["ELMAN", "EXTRAS", "GRU", "LSTM", "SLSTM", "SLSTM_EXP", "again", "backward", "forward"]

ELMAN, LSTM, GRU, SLSTM, SLSTM_EXP = range(5)
EXTRAS = 3  # arrays that `again` leaves for `backward`, at most
_ONE = np.float32(1)
_slstm, _slstm_again, _slstm_backward = with_sigmoid_forget_gate
_slstm_exp, _slstm_exp_again, _slstm_exp_backward = with_exponential_forget_gate


@function
def forward(cell, n, slots, far, hidden, others, new_hidden, new_others):
    """The state after a token."""
    if cell == ELMAN:
        _elman(n, slots, new_hidden)
    elif cell == LSTM:
        _lstm(n, slots, far, others, new_hidden, new_others)
    elif cell == GRU:
        _gru(n, slots, far, hidden, new_hidden)
    elif cell == SLSTM:
        _slstm(n, slots, far, others, new_hidden, new_others)
    else:
        _slstm_exp(n, slots, far, others, new_hidden, new_others)


@function
def again(cell, n, slots, far, others, new_others, extra):
    """The same from what `forward` left in the slots, without the hidden state; and more that `backward` needs."""
    if cell == LSTM:
        _lstm_again(n, slots, far, others, new_others)
    elif cell == SLSTM:
        _slstm_again(n, slots, far, others, new_others, extra)
    elif cell == SLSTM_EXP:
        _slstm_exp_again(n, slots, far, others, new_others, extra)


@function
def backward(cell, n, slots, far, extra, hidden, others, new_others, grad_hidden, grad_others, grads, step):
    """From the gradients of the state after a token those of the slots, and in place those of the state before it.

    What reaches the hidden state before it through the product is left out; only the GRU has more than that.
    """
    if cell == ELMAN:
        _elman_backward(n, slots, grad_hidden, grads)
    elif cell == LSTM:
        _lstm_backward(n, slots, far, others, new_others, grad_hidden, grad_others, grads, step)
    elif cell == GRU:
        _gru_backward(n, slots, far, hidden, grad_hidden, grads, step)
    elif cell == SLSTM:
        _slstm_backward(n, slots, far, extra, others, new_others, grad_hidden, grad_others, grads, step)
    else:
        _slstm_exp_backward(n, slots, far, extra, others, new_others, grad_hidden, grad_others, grads, step)


@function
def _elman(n, slots, new_hidden):
    h, shown = vector(slots, n), vector(new_hidden, n)
    for d in range(n):
        h[d] = tanh(h[d])
        shown[d] = h[d]


@function
def _elman_backward(n, slots, grad_hidden, grads):
    h, grad_h, grad = vector(slots, n), vector(grad_hidden, n), vector(grads, n)
    for d in range(n):
        grad[d] = grad_h[d] * (_ONE - h[d] * h[d])


@function
def _lstm(n, slots, far, others, new_hidden, new_others):
    i, f, g, o = vector(slots, n), vector(slots + far, n), vector(slots + 2 * far, n), vector(slots + 3 * far, n)
    c, new_c, h = vector(others, n), vector(new_others, n), vector(new_hidden, n)
    for d in range(n):  # three loops: one has too much to hold in registers
        i[d], f[d] = sigmoid(i[d]), sigmoid(f[d])
    for d in range(n):
        g[d], o[d] = tanh(g[d]), sigmoid(o[d])
    for d in range(n):
        new_c[d] = f[d] * c[d] + i[d] * g[d]
        h[d] = o[d] * tanh(new_c[d])


@function
def _lstm_again(n, slots, far, others, new_others):
    i, f, g = vector(slots, n), vector(slots + far, n), vector(slots + 2 * far, n)
    c, new_c = vector(others, n), vector(new_others, n)
    for d in range(n):
        new_c[d] = f[d] * c[d] + i[d] * g[d]


@function
def _lstm_backward(n, slots, far, others, new_others, grad_hidden, grad_others, grads, step):
    i, f, g, o = vector(slots, n), vector(slots + far, n), vector(slots + 2 * far, n), vector(slots + 3 * far, n)
    c, new_c, grad_h, grad_c = vector(others, n), vector(new_others, n), vector(grad_hidden, n), vector(grad_others, n)
    grad_i, grad_f = vector(grads, n), vector(grads + step, n)
    grad_g, grad_o = vector(grads + 2 * step, n), vector(grads + 3 * step, n)
    for d in range(n):
        shown = tanh(new_c[d])
        total = grad_c[d] + grad_h[d] * o[d] * (_ONE - shown * shown)
        grad_i[d] = total * g[d] * (i[d] * (_ONE - i[d]))
        grad_f[d] = total * c[d] * (f[d] * (_ONE - f[d]))
        grad_g[d] = total * i[d] * (_ONE - g[d] * g[d])
        grad_o[d] = grad_h[d] * shown * (o[d] * (_ONE - o[d]))
        grad_c[d] = total * f[d]


@function
def _gru(n, slots, far, hidden, new_hidden):
    r, z, new, u = vector(slots, n), vector(slots + far, n), vector(slots + 2 * far, n), vector(slots + 3 * far, n)
    h, new_h = vector(hidden, n), vector(new_hidden, n)
    for d in range(n):
        r[d], z[d] = sigmoid(r[d]), sigmoid(z[d])
    for d in range(n):
        new[d] = tanh(new[d] + r[d] * u[d])
        new_h[d] = (_ONE - z[d]) * new[d] + z[d] * h[d]


@function
def _gru_backward(n, slots, far, hidden, grad_hidden, grads, step):
    r, z, new, u = vector(slots, n), vector(slots + far, n), vector(slots + 2 * far, n), vector(slots + 3 * far, n)
    h, grad_h, grad_r, grad_z = vector(hidden, n), vector(grad_hidden, n), vector(grads, n), vector(grads + step, n)
    grad_new, grad_u = vector(grads + 2 * step, n), vector(grads + 3 * step, n)
    for d in range(n):
        total, kept = grad_h[d], grad_h[d] * z[d]
        of_new = (total - kept) * (_ONE - new[d] * new[d])
        grad_r[d] = of_new * u[d] * (r[d] * (_ONE - r[d]))
        grad_z[d] = total * (h[d] - new[d]) * (z[d] * (_ONE - z[d]))
        grad_new[d], grad_u[d], grad_h[d] = of_new, of_new * r[d], kept
