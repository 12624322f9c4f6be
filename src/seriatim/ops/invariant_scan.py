r"""Linear systems whose matrices are the same at every token: linear time-invariant state spaces.

.. math:: h_t = A h_{t-1} + B u_t, \qquad y_t = \mathrm{Re}(C h_t)

Each system reads one number a token and answers M. A is a diagonal or a whole matrix, real or complex. The same map
is the convolution of u with the kernel Re(C A^i B); the parallel path, :mod:`seriatim.ops.invariant_chunks`, takes the
convolution inside a chunk and the recurrence between chunks.

Dimensions: B batch, T time, G systems, N state size, M answers.
"""

import torch
from jaxtyping import Bool, Float, Inexact, Int
from torch import Tensor

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError
from seriatim.core.linear import linear_in
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_lengths, check_reset, check_tensors
from seriatim.ops.invariant_chunks import chunked
from seriatim.ops.precision import cast, compute_dtype, full_precision

__all__ = ["invariant_scan", "reference"]


@linear_in("u", shared=False)
def invariant_scan(
    u: Float[Tensor, "B T G"],
    A: Inexact[Tensor, "G *N"],
    B: Inexact[Tensor, "G N"],
    C: Inexact[Tensor, "G M N"],
    *,
    state: Inexact[Tensor, "B G N"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T G M"], Inexact[Tensor, "B G N"]]:
    """h = A h + B u, y = Re(C h).

    Args:
        u: (B, T, G), real.
        A: (G, N), the diagonal of the transition, or (G, N, N), the whole; discretised.
        B: (G, N), what an input adds.
        C: (G, M, N), how the answers read the state.
        state: (B, G, N), what an earlier call returned; None is zeros.
        reset: (B, T) bool, the state is emptied before this token.
        lengths: (B,) int, only the first lengths[b] tokens are real. Answers at padded tokens mean nothing.

    Returns:
        y (B, T, G, M) in the dtype of u, and the state after the last real token, in float32 or complex64 at least,
        complex where A, B, C or the state is.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    if isinstance(u, Tensor) and u.is_complex():
        raise SeriatimError(f"u has dtype {u.dtype}; it must be floating")
    whole = isinstance(A, Tensor) and A.dim() == 3
    check_tensors(
        {
            "u": (u, "batch time systems"),
            "A": (A, "systems states states" if whole else "systems states"),
            "B": (B, "systems states"),
            "C": (C, "systems answers states"),
            "state": (state, "batch systems states?"),
        },
        allow_complex=True,
    )
    check_reset(reset, u)
    check_lengths(lengths, u)
    dtype = compute_dtype(u, A, B, C, state)
    A, B, C, state = cast(dtype, A, B, C, state)
    if lengths is not None and reset is not None:
        reset = reset & ragged.real_tokens(lengths, u.size(1))
    wide = u.to(torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32)
    with full_precision(u.device):
        run = choose({"reference": reference, "torch": chunked}, wide)
        y, state = run(wide, A, B, C, state=state, reset=reset, lengths=lengths)
    return y.to(u.dtype), state


def reference(
    u: Float[Tensor, "B T G"],
    A: Inexact[Tensor, "G *N"],
    B: Inexact[Tensor, "G N"],
    C: Inexact[Tensor, "G M N"],
    *,
    state: Inexact[Tensor, "B G N"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T G M"], Inexact[Tensor, "B G N"]]:
    """The equation, token by token."""
    h = A.new_zeros(u.size(0), *B.shape) if state is None else state
    outputs = [u.new_zeros(u.size(0), 0, *C.shape[:2])]
    for t in range(u.size(1)):
        before = h if reset is None else torch.where(reset[:, t, None, None], 0.0, h)
        faded = A * before if A.dim() == 2 else torch.einsum("gnm,bgm->bgn", A, before)
        after = faded + B * u[:, t, :, None]
        y = torch.einsum("gmn,bgn->bgm", C, after)
        outputs.append((y.real if y.is_complex() else y).unsqueeze(1))
        h = after if lengths is None else torch.where((t < lengths)[:, None, None], after, h)
    return torch.cat(outputs, 1), h
