"""Rotary positions: pairs of features turned by an angle. An item is a block of tokens of one row."""

from seriatim.kernels.cpu.source.language import (
    Address,
    Floats3,
    Floats4,
    Index,
    Real,
    address,
    function,
    kernel,
    line,
    vector,
)

__all__ = ["turn"]


@kernel
def turn(
    item: Index,
    scratch: Address,
    block: Index,
    sign: Real,
    x: Floats4,
    cosine: Floats3,
    sine: Floats3,
    out: Floats4,
):
    """out (B, T, H, K): features i and i + K / 2 of x turned by sign times the angle of cosine, sine (B, T, K / 2)."""
    time, half = x.shape[1], cosine.shape[2]
    blocks = (time + block - 1) // block
    b, begin = item // blocks, item % blocks * block
    for t in range(begin, min(time, begin + block)):
        c, s = line(cosine, b, t), line(sine, b, t)
        for h in range(x.shape[2]):
            place, where = address(x, b, t, h), address(out, b, t, h)
            _pairs(vector(place, half), vector(place + 4 * half, half), c, s, sign, vector(where, half),
                   vector(where + 4 * half, half))  # fmt: skip


@function
def _pairs(first, second, cosine, sine, sign, out_first, out_second):
    for i in range(out_first.size):
        x, y, c, s = first[i], second[i], cosine[i], sign * sine[i]
        out_first[i] = x * c - y * s
        out_second[i] = y * c + x * s
