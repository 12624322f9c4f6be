r"""Mamba's scan: a diagonal state space whose step size and read and write directions depend on the input.

.. math:: h_t = e^{\Delta_t A} \odot h_{t-1} + \Delta_t x_t B_t^\top, \qquad y_t = h_t C_t + D \odot x_t

With `signed` the decay is 2 e^{\Delta_t A} - 1: from -1 to 1 instead of 0 to 1 where A is negative.

Dimensions: B batch, T time, E channels, N state size.

The parallel path is that of :mod:`seriatim.ops.selective_chunks`.
Source: Gu and Dao, 2023, arXiv:2312.00752, equation 2 with the discretisation of its code (B by Euler's rule), section
3.3.2. Signed: Grazzi et al., 2024, arXiv:2411.12537.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seriatim.core.linear import linear_in
from seriatim.kernels.cpu.selective_scan import selective_scan as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_reset, check_tensors
from seriatim.ops.diagonal_scan import BLOCK
from seriatim.ops.precision import full_precision, widen
from seriatim.ops.selective_chunks import scan

__all__ = ["reference", "selective_scan"]

CHUNK_ELEMENTS = {"cpu": 1 << 19}  # of the states of a chunk: what a core's cache holds
CHUNK_ELEMENTS_ELSEWHERE = 1 << 24  # enough to keep a large device busy
LEAST = 1 << 15  # state values below which calling the compiled kernel for one token takes longer than it saves


@linear_in("x", shared=False)
def selective_scan(
    x: Float[Tensor, "B T E"],
    delta: Float[Tensor, "B T E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T N"],
    C: Float[Tensor, "B T N"],
    D: Float[Tensor, " E"] | None = None,
    *,
    state: Float[Tensor, "B E N"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    signed: bool = False,
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """h = exp(delta A) h + delta x B, y = C.h + D x.

    Args:
        x: (B, T, E).
        delta: (B, T, E), the step sizes, already positive. A token whose step is 0 leaves the state as it is.
        A: (E, N), usually negative.
        B, C: (B, T, N), what to write and what to read.
        D: (E,), how much of x passes by; None is 0.
        state: (B, E, N), what an earlier call returned; None is zeros.
        reset: (B, T) bool, the state is emptied before this token.
        signed: the decay is 2 exp(delta A) - 1, not exp(delta A).

    Returns:
        y (B, T, E) in the dtype of x, and the state after the last token, in float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    check_tensors(
        {
            "x": (x, "batch time channels"),
            "delta": (delta, "batch time channels"),
            "A": (A, "channels states"),
            "B": (B, "batch time states"),
            "C": (C, "batch time states"),
            "D": (D, "channels?"),
            "state": (state, "batch channels states?"),
        }
    )
    check_reset(reset, x)
    arguments = widen(x, delta, A, B, C, D, state)
    with full_precision(x.device):
        kernels = {"cpu": compiled} if x.size(1) > 1 or x.size(0) * A.numel() >= LEAST else {}
        run = choose({"reference": reference, "torch": chunked, **kernels}, arguments[0])
        y, state = run(*arguments[:-1], state=arguments[-1], reset=reset, signed=signed)
    return y.to(x.dtype), state


def reference(
    x: Float[Tensor, "B T E"],
    delta: Float[Tensor, "B T E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T N"],
    C: Float[Tensor, "B T N"],
    D: Float[Tensor, " E"] | None = None,
    *,
    state: Float[Tensor, "B E N"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    signed: bool = False,
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """The equation, token by token."""
    h = x.new_zeros(x.size(0), *A.shape) if state is None else state
    outputs = []
    for t in range(x.size(1)):
        if reset is not None:
            h = torch.where(reset[:, t, None, None], 0.0, h)
        decay = torch.exp(delta[:, t, :, None] * A)
        if signed:
            decay = 2 * decay - 1
        h = decay * h + (delta[:, t] * x[:, t])[:, :, None] * B[:, t, None, :]
        y = torch.einsum("ben,bn->be", h, C[:, t])
        outputs.append(y if D is None else y + D * x[:, t])
    return (torch.stack(outputs, 1) if outputs else x), h


def chunked(
    x: Float[Tensor, "B T E"],
    delta: Float[Tensor, "B T E"],
    A: Float[Tensor, "E N"],
    B: Float[Tensor, "B T N"],
    C: Float[Tensor, "B T N"],
    D: Float[Tensor, " E"] | None = None,
    *,
    state: Float[Tensor, "B E N"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    signed: bool = False,
) -> tuple[Float[Tensor, "B T E"], Float[Tensor, "B E N"]]:
    """The same by a scan over the blocks of a chunk."""
    state = x.new_zeros(x.size(0), *A.shape) if state is None else state
    if x.size(1) == 0:
        return x, state
    if x.size(1) == 1:
        y, state = _step(x, delta, A, B, C, state, reset, signed)
    else:
        y, last, _ = scan(delta, delta * x, A.mT, B, C, state.mT, reset, _chunk_tokens(state), signed)
        state = last.mT
    return (y if D is None else torch.addcmul(y, D, x)), state


def _step(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, signed: bool
) -> tuple[Tensor, Tensor]:
    """One token, as generation reads them."""
    if reset is not None:
        state = state.masked_fill(reset[:, :, None], 0.0)
    decay = (delta.mT * A).expm1() * 2 + 1 if signed else (delta.mT * A).exp()
    state = torch.addcmul(decay * state, (delta * x).mT, B)
    return (C @ state.mT), state


def _chunk_tokens(state: Tensor) -> int:
    """Whole blocks whose states fit the cache, one at least."""
    elements = CHUNK_ELEMENTS.get(state.device.type, CHUNK_ELEMENTS_ELSEWHERE)
    return max(1, elements // max(1, state.numel()) // BLOCK) * BLOCK
