r"""A causal convolution of each feature with its own few taps, carrying the last inputs from segment to segment.

.. math:: y_t = \beta + \sum_{i=0}^{W-1} w_{W-1-i} \odot x_{t-i}

Dimensions: B batch, T time, D features, W taps.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.short_conv import short_conv as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_lengths, check_reset, check_tensors
from seriatim.ops.precision import full_precision, widen

__all__ = ["last_inputs", "reference", "short_conv", "sum_of_taps"]

LEAST = 1 << 15  # numbers below which calling the compiled kernel takes longer than it saves


def short_conv(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, " D"] | None = None,
    *,
    state: Float[Tensor, "B tail D"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B tail D"]]:
    """Depthwise causal convolution over the last W tokens; taps that reach across a reset are 0.

    Args:
        x: (B, T, D).
        weight: (D, W), W at least 1; weight[:, -1] multiplies the current token.
        bias: (D,), None is 0.
        state: (B, W - 1, D), the inputs before x, what an earlier call returned; None is zeros.
        reset: (B, T) bool, a new document begins at this token.
        lengths: (B,) int, only the first lengths[b] tokens are real. Outputs of padded tokens mean nothing.

    Returns:
        y (B, T, D) in the dtype of x, and the last W - 1 real inputs since the last reset, zeros before them, in
        float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    check_tensors({"x": (x, "batch time dim"), "weight": (weight, "dim taps"), "bias": (bias, "dim?")})
    if weight.size(1) == 0:
        raise SeriatimError(f"weight has shape {tuple(weight.shape)}; it must be (dim, taps) with at least 1 tap")
    check_tensors({"x": (x, "batch time dim"), "state": (state, f"batch {weight.size(1) - 1} dim?")})
    check_reset(reset, x)
    check_lengths(lengths, x)
    arguments = widen(x, weight, bias, state)
    with full_precision(x.device):
        kernels = {"cpu": compiled} if x.numel() >= LEAST else {}
        convolve = choose({"reference": reference, "torch": sum_of_taps, **kernels}, arguments[0])
        y, state = convolve(*arguments[:-1], state=arguments[-1], reset=reset, lengths=lengths)
    return y.to(x.dtype), state


def reference(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, " D"] | None = None,
    *,
    state: Float[Tensor, "B tail D"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B tail D"]]:
    """The equation, token by token: the tail is a queue that a reset empties."""
    tail = x.new_zeros(x.size(0), weight.size(1) - 1, x.size(2)) if state is None else state
    outputs = []
    for t in range(x.size(1)):
        before = tail if reset is None else torch.where(reset[:, t, None, None], 0.0, tail)
        window = torch.cat([before, x[:, t : t + 1]], 1)
        y = torch.einsum("bwd,dw->bd", window, weight)
        outputs.append(y if bias is None else y + bias)
        tail = window[:, 1:] if lengths is None else torch.where((t < lengths)[:, None, None], window[:, 1:], tail)
    return (torch.stack(outputs, 1) if outputs else x), tail


def sum_of_taps(
    x: Float[Tensor, "B T D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, " D"] | None = None,
    *,
    state: Float[Tensor, "B tail D"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B tail D"]]:
    """The same for all tokens at once, tap by tap: on a CPU as fast as a library convolution, with no transposes."""
    time, taps = x.size(1), weight.size(1)
    state = x.new_zeros(x.size(0), taps - 1, x.size(2)) if state is None else state
    if time == 1 and lengths is None:
        return _step(x, weight, bias, state, reset)
    if lengths is not None:
        real = ragged.real_tokens(lengths, time)
        x, reset = ragged.mask(x, real), None if reset is None else reset & real
    inputs = torch.cat([state, x], 1)
    # Which document each input belongs to; what is carried belongs to the one that the segment begins in.
    document = None if reset is None else F.pad(ragged.segments(reset), (taps - 1, 0))
    y = torch.zeros_like(x) if bias is None else bias
    for tap, factor in enumerate(weight.unbind(1)):
        seen = inputs[:, tap : tap + time]
        if document is not None and tap < taps - 1:
            seen = ragged.mask(seen, document[:, tap : tap + time] == document[:, taps - 1 :])
        y = torch.addcmul(y, seen, factor)
    return y, last_inputs(inputs, document, lengths, taps)


def _step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token, as generation reads them."""
    if reset is not None:
        state = state.masked_fill(reset.unsqueeze(2), 0.0)
    window = torch.cat([state, x], 1)
    y = (window * weight.mT).sum(1, keepdim=True)
    return (y if bias is None else y + bias), window[:, 1:]


def last_inputs(inputs: Tensor, document: Tensor | None, lengths: Tensor | None, taps: int) -> Tensor:
    """The last W - 1 of the first W - 1 + lengths inputs, 0 where they belong to an earlier document than the last."""
    tail = _last(inputs, lengths, taps - 1)
    if document is None:
        return tail
    # Resets in the padding are gone, so nothing begins behind the real tokens.
    return ragged.mask(tail, _last(document, lengths, taps - 1) == document[:, -1:])


def _last(values: Tensor, lengths: Tensor | None, count: int) -> Tensor:
    """Of (B, count + T, ...) those before token lengths[b]: copied, for a view keeps all of them in memory."""
    if lengths is None:
        return values[:, values.size(1) - count :].clone()
    index = lengths[:, None] + torch.arange(count, device=values.device)
    return values[torch.arange(values.size(0), device=values.device)[:, None], index]
