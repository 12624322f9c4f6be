r"""A causal convolution of each feature with a kernel as long as the sequence, by fast Fourier transforms.

.. math:: y_t = \sum_{i=0}^{L-1} k_i \odot u_{t-i}

Dimensions: B batch, T time, D features, L taps.

Where documents begin inside the sequence, one transform over all of it would mix them. The sequence is then halved
again and again: what a left half says to its right half is a convolution of the document that is open between them,
masked on both sides; the pieces at the bottom are short convolutions. That is O(T log^2 T) instead of O(T log T).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError
from seriatim.core.linear import linear_in
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_lengths, check_reset, check_tensors
from seriatim.ops.precision import full_precision, widen
from seriatim.ops.short_conv import last_inputs, short_conv, sum_of_taps
from seriatim.ops.short_conv import reference as short_reference

__all__ = ["long_conv", "reference"]

PIECE = 64  # tokens convolved directly where documents begin inside the sequence


@linear_in("u", shared=False)
def long_conv(
    u: Float[Tensor, "B T D"],
    kernel: Float[Tensor, "D L"],
    *,
    state: Float[Tensor, "B tail D"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B tail D"]]:
    """Depthwise causal convolution over the last L tokens.

    Args:
        u: (B, T, D).
        kernel: (D, L), L at least 1; kernel[:, 0] multiplies the current token.
        state: (B, L - 1, D), the inputs before u, what an earlier call returned; None is zeros.
        reset: (B, T) bool, a new document begins at this token.
        lengths: (B,) int, only the first lengths[b] tokens are real. Outputs of padded tokens mean nothing.

    Returns:
        y (B, T, D) in the dtype of u, and the last L - 1 real inputs since the last reset, zeros before them, in
        float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    check_tensors({"u": (u, "batch time dim"), "kernel": (kernel, "dim taps")})
    if kernel.size(1) == 0:
        raise SeriatimError(f"kernel has shape {tuple(kernel.shape)}; it must be (dim, taps) with at least 1 tap")
    check_tensors({"u": (u, "batch time dim"), "state": (state, f"batch {kernel.size(1) - 1} dim?")})
    check_reset(reset, u)
    check_lengths(lengths, u)
    wide_u, kernel, state = widen(u, kernel, state)
    with full_precision(u.device):
        run = choose({"reference": reference, "torch": by_transforms}, wide_u)
        y, state = run(wide_u, kernel, state=state, reset=reset, lengths=lengths)
    return y.to(u.dtype), state


def reference(
    u: Float[Tensor, "B T D"],
    kernel: Float[Tensor, "D L"],
    *,
    state: Float[Tensor, "B tail D"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B tail D"]]:
    """The equation, token by token."""
    return short_reference(u, kernel.flip(1), None, state=state, reset=reset, lengths=lengths)


def by_transforms(
    u: Float[Tensor, "B T D"],
    kernel: Float[Tensor, "D L"],
    *,
    state: Float[Tensor, "B tail D"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B tail D"]]:
    """The same, all tokens at once."""
    batch, time, dim = u.shape
    taps = kernel.size(1)
    if time == 1 and lengths is None:  # one product, as generation reads tokens
        return sum_of_taps(u, kernel.flip(1), state=state, reset=reset)
    if lengths is not None:
        real = ragged.real_tokens(lengths, time)
        u, reset = ragged.mask(u, real), None if reset is None else reset & real
    inputs = u if state is None else torch.cat([state, u], 1)
    document = None if reset is None else F.pad(ragged.segments(reset), (inputs.size(1) - time, 0))
    if u.numel() == 0:
        y = u
    elif document is None:
        y = _convolve(inputs, kernel)[:, inputs.size(1) - time :]
    else:
        y = _convolve_documents(inputs, kernel, document)[:, inputs.size(1) - time :]
    if state is None:
        inputs = torch.cat([u.new_zeros(batch, taps - 1, dim), u], 1)
        document = None if document is None else F.pad(document, (taps - 1, 0))
    return y, last_inputs(inputs, document, lengths, taps)


def _convolve(u: Tensor, kernel: Tensor) -> Tensor:
    """All of u (..., T, D) with as much of the kernel as reaches."""
    time = u.size(-2)
    kernel = kernel[:, :time]
    size = _smooth(time + kernel.size(1) - 1)
    spectrum = torch.fft.rfft(u.mT.contiguous(), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :time].mT


def _convolve_documents(u: Tensor, kernel: Tensor, document: Tensor) -> Tensor:
    """The same, of u (B, T, D), where only tokens of the same document (B, T) see each other."""
    time = u.size(1)
    size = PIECE
    while size < time:
        size *= 2
    u = F.pad(u, (0, 0, 0, size - time))
    document = F.pad(document, (0, size - time), value=-1)
    begins = F.pad(document[:, 1:] != document[:, :-1], (1, 0))
    begins[:, ::PIECE] = True
    y, _ = short_conv(u, kernel[:, :PIECE].flip(1), reset=begins)
    half = PIECE
    while half < size:
        halves, labels = u.unflatten(1, (-1, 2, half)), document.unflatten(1, (-1, 2, half))
        opened = labels[:, :, 0, -1:]  # the document at the middle
        said = halves[:, :, 0].masked_fill((labels[:, :, 0] != opened).unsqueeze(3), 0.0)
        heard = _convolve(F.pad(said, (0, 0, 0, half)), kernel)[:, :, half:]
        heard = heard.masked_fill((labels[:, :, 1] != opened).unsqueeze(3), 0.0)
        y = y + F.pad(heard, (0, 0, half, 0)).flatten(1, 2)
        half *= 2
    return y[:, :time]


def _smooth(length: int) -> int:
    """The least 2^a 3^b 5^c that is not below `length`: transforms of such lengths are fast."""
    best = 1 << (length - 1).bit_length()
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            twos = threes << max(0, (-(-length // threes) - 1).bit_length())
            best = min(best, twos)
            threes *= 3
        fives *= 5
    return best
