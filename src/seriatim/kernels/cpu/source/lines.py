"""Arithmetic on whole lines of memory, for use inside kernels: loops that become vector code."""

from seriatim.kernels.cpu.source.language import function

__all__ = ["add", "add_product", "copy", "fill"]


@function
def fill(out, value):
    """out = value."""
    for i in range(out.size):
        out[i] = value


@function
def copy(out, x):
    """out = x."""
    for i in range(out.size):
        out[i] = x[i]


@function
def add(out, x):
    """out += x."""
    for i in range(out.size):
        out[i] += x[i]


@function
def add_product(out, x, y):
    """out += x * y."""
    for i in range(out.size):
        out[i] += x[i] * y[i]
