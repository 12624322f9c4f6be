r"""A linear recurrence in which every feature goes its own way.

.. math:: h_t = a_t \odot h_{t-1} + b_t

Dimensions: B batch, T time, F any number of feature dimensions.

The parallel path splits time into blocks: all blocks at once run to their ends, a scan of the ends (by the same rule)
says where each block starts, and all blocks at once run again from there. That is three multiplications a token and
about 2 BLOCK log T / log BLOCK steps. The gradient is such a scan backwards in time. Source: Blelloch, 1990, "Prefix
sums and their applications"; Martin and Cundy, 2018, arXiv:1709.04057.
"""

from typing import Any

import torch
from jaxtyping import Bool, Inexact
from torch import Tensor

from seriatim.kernels.cpu.diagonal_scan import diagonal_scan as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_reset, check_tensors
from seriatim.ops.precision import cast, compute_dtype, full_precision

__all__ = ["diagonal_scan", "reference", "scan_in_place"]

BLOCK = 16
LEAST = 1 << 17  # numbers below which calling the compiled kernel for one token takes longer than it saves


def diagonal_scan(
    a: Inexact[Tensor, "*BTF"],
    b: Inexact[Tensor, "B T *F"],
    *,
    state: Inexact[Tensor, "B *F"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Inexact[Tensor, "B T *F"], Inexact[Tensor, "B *F"]]:
    """h = a h + b, real or complex.

    Args:
        a: (B, T, *F), or (*F) for the same at every token. Of any size, 0 included.
        b: (B, T, *F).
        state: (B, *F), what an earlier call returned; None is zeros.
        reset: (B, T) bool, h is 0 before this token.

    Returns:
        h (B, T, *F), in the dtype of b, or complex where a or the state is; and the state after the last token, in
        float32 or complex64 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    constant = isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() == b.dim() - 2
    check_tensors(
        {
            "b": (b, "batch time *features"),
            "a": (a, "*features" if constant else "batch time *features"),
            "state": (state, "batch *features?"),
        },
        allow_complex=True,
    )
    check_reset(reset, b)
    dtype = compute_dtype(a, b, state)
    wide_a, wide_b, state = cast(dtype, a, b, state)
    with full_precision(b.device):
        kernels = {"cpu": compiled} if b.size(1) > 1 or b.numel() >= LEAST else {}
        scan = choose({"reference": reference, "torch": blocked, **kernels}, wide_b)
        h, state = scan(wide_a, wide_b, state=state, reset=reset)
    return (h if dtype.is_complex else h.to(b.dtype)), state


def reference(
    a: Inexact[Tensor, "*BTF"],
    b: Inexact[Tensor, "B T *F"],
    *,
    state: Inexact[Tensor, "B *F"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Inexact[Tensor, "B T *F"], Inexact[Tensor, "B *F"]]:
    """The equation, token by token."""
    a = a.expand(b.shape)
    h = b.new_zeros(b.size(0), *b.shape[2:]) if state is None else state
    outputs = []
    for t in range(b.size(1)):
        if reset is not None:
            h = torch.where(_over_features(reset[:, t], h), 0.0, h)
        h = a[:, t] * h + b[:, t]
        outputs.append(h)
    return (torch.stack(outputs, 1) if outputs else b), h


def blocked(
    a: Inexact[Tensor, "*BTF"],
    b: Inexact[Tensor, "B T *F"],
    *,
    state: Inexact[Tensor, "B *F"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Inexact[Tensor, "B T *F"], Inexact[Tensor, "B *F"]]:
    """The same by a scan over blocks."""
    state = b.new_zeros(b.size(0), *b.shape[2:]) if state is None else state
    if b.size(1) == 0:
        return b, state
    a = a.expand(b.shape)
    if reset is not None:
        a = a.masked_fill(_over_features(reset, a), 0.0)
    if b.size(1) == 1:
        h = torch.addcmul(b, a, state.unsqueeze(1))
        return h, h.squeeze(1).clone()  # a view would let whoever writes into the output change the state
    return _scan(a, b, state, False)


def scan_in_place(decay: Tensor, values: Tensor, carry: Tensor, *, reverse: bool = False) -> Tensor:
    """Adds decay_t * values_{t-1} to every values_t (B, T, ...), `carry` (B, ...) before the first; returns the last.

    With reverse, values_{t+1} is added, `carry` stands behind the last, and the first is returned. What is returned is
    a view of `values`. Not differentiable.
    """
    time = values.size(1)
    if time <= BLOCK:
        for t in _order(time, reverse):
            carry = values[:, t].addcmul_(decay[:, t], carry)
        return carry
    whole = time - time % BLOCK
    if whole < time:
        for part in (slice(whole, time), slice(0, whole)) if reverse else (slice(0, whole), slice(whole, time)):
            carry = scan_in_place(decay[:, part], values[:, part], carry, reverse=reverse)
        return carry
    decay, values = decay.unflatten(1, (whole // BLOCK, BLOCK)), values.unflatten(1, (whole // BLOCK, BLOCK))
    first, *others = _order(BLOCK, reverse)
    product, end = decay[:, :, first].clone(), values[:, :, first].clone()
    for t in others:
        end.mul_(decay[:, :, t]).add_(values[:, :, t])
        product.mul_(decay[:, :, t])
    last = scan_in_place(product, end, carry, reverse=reverse)
    carry = carry.unsqueeze(1)
    before = torch.cat([end[:, 1:], carry] if reverse else [carry, end[:, :-1]], 1)
    for t in (first, *others):
        before = values[:, :, t].addcmul_(decay[:, :, t], before)
    return last


@torch.library.custom_op("seriatim::diagonal_scan", mutates_args=())
def _scan(decay: Tensor, values: Tensor, carry: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    """What `scan_in_place` makes of a copy of `values`, and what it returns: one node to a compiler, however long."""
    values = values.clone()
    return values, scan_in_place(decay, values, carry, reverse=reverse).clone()


@_scan.register_fake
def _(decay: Tensor, values: Tensor, carry: Tensor, reverse: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(values[:, 0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    decay, _, carry, ctx.reverse = inputs
    ctx.save_for_backward(decay, carry, output[0])


def _gradients(ctx: Any, grad_scan: Tensor, grad_end: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient in the values is a scan in the other direction."""
    decay, carry, found = ctx.saved_tensors
    decay, carry, one = decay.conj(), carry.unsqueeze(1), torch.ones_like(decay[:, :1])
    if ctx.reverse:
        shifted, before, last = torch.cat([one, decay[:, :-1]], 1), torch.cat([found[:, 1:], carry], 1), -1
    else:
        shifted, before, last = torch.cat([decay[:, 1:], one], 1), torch.cat([carry, found[:, :-1]], 1), 0
    grad, _ = _scan(shifted, grad_scan, grad_end, not ctx.reverse)
    return grad * before.conj(), grad, decay[:, last] * grad[:, last], None


_scan.register_autograd(_gradients, setup_context=_save)


def _order(steps: int, reverse: bool) -> range:
    return range(steps - 1, -1, -1) if reverse else range(steps)


def _over_features(flags: Tensor, like: Tensor) -> Tensor:
    """`flags` with as many dimensions as `like`."""
    return flags.view(*flags.shape, *[1] * (like.dim() - flags.dim()))
