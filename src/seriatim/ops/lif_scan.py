r"""Leaky integrate-and-fire neurons over time, with a surrogate gradient.

.. math:: v_t = h_{t-1} + (x_t - h_{t-1}) / \tau, \quad s_t = [v_t \ge \theta], \quad h_t = (1 - s_t)\, v_t

A spike empties the membrane. The gradient of s in v is that of :math:`\sigma(\kappa (v - \theta))` instead of 0, and
none goes through the emptying. Source: Neftci, Mostafa and Zenke, 2019, arXiv:1901.09948; the constants are those of
SpikingJelly, Fang et al., 2023, arXiv:2310.16620.

Dimensions: B batch, T time, F any number of feature dimensions.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError, check_positive
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_lengths, check_reset, check_tensors
from seriatim.ops.precision import full_precision, widen

__all__ = ["lif_scan", "reference"]


def lif_scan(
    x: Float[Tensor, "B T *F"],
    *,
    tau: float = 2.0,
    threshold: float = 1.0,
    slope: float = 4.0,
    state: Float[Tensor, "B *F"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T *F"], Float[Tensor, "B *F"]]:
    """Which neurons fire at each token, 0 or 1, and what their membranes hold after the last.

    Args:
        x: (B, T, *F), the current that a neuron is given.
        tau: tokens in which a membrane forgets, at least 1.
        threshold: theta, above 0.
        slope: kappa of the surrogate gradient, above 0.
        state: (B, *F), what an earlier call returned; None is zeros.
        reset: (B, T) bool, membranes are emptied before this token.
        lengths: (B,) int, only the first lengths[b] tokens are real. Nothing fires at padded ones.

    Returns:
        spikes (B, T, *F) in the dtype of x, and the state after the last real token, in float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above, or is out of range.
    """
    check_tensors({"x": (x, "batch time *features"), "state": (state, "batch *features?")})
    check_reset(reset, x)
    check_lengths(lengths, x)
    check_positive(threshold=threshold, slope=slope)
    if not tau >= 1:
        raise SeriatimError(f"tau is {tau}; it must be at least 1")
    wide, state = widen(x, state)
    state = wide.new_zeros(x.size(0), *x.shape[2:]) if state is None else state
    with full_precision(x.device):
        scan = choose({"reference": reference, "torch": _looped}, wide)
        spikes, end = scan(wide, tau=tau, threshold=threshold, slope=slope, state=state, reset=reset, lengths=lengths)
    return spikes.to(x.dtype), end


def reference(
    x: Float[Tensor, "B T *F"],
    *,
    tau: float,
    threshold: float,
    slope: float,
    state: Float[Tensor, "B *F"],
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, " B"] | None = None,
) -> tuple[Float[Tensor, "B T *F"], Float[Tensor, "B *F"]]:
    """The equations, token by token; autograd finds the gradient."""
    h, outputs, ones = state, [], [1] * (x.dim() - 2)
    for t in range(x.size(1)):
        before = h if reset is None else torch.where(reset[:, t].view(-1, *ones), 0.0, h)
        v = before + (x[:, t] - before) / tau
        soft = torch.sigmoid(slope * (v - threshold))
        fires = v >= threshold
        spikes = fires.to(v.dtype) + (soft - soft.detach())
        after = torch.where(fires, 0.0, v)
        if lengths is not None:
            real = (t < lengths).view(-1, *ones)
            spikes, after = torch.where(real, spikes, 0.0), torch.where(real, after, h)
        outputs.append(spikes)
        h = after
    return (torch.stack(outputs, 1) if outputs else x), h


def _looped(
    x: Tensor,
    *,
    tau: float,
    threshold: float,
    slope: float,
    state: Tensor,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The same as a loop that keeps what the gradient needs."""
    if x.size(1) == 1 and reset is None and lengths is None and not torch.is_grad_enabled():
        v = torch.lerp(state, x[:, 0], 1 / tau)  # in the open, for programs of single steps are made of it
        fires = v >= threshold
        return fires.to(x.dtype).unsqueeze(1), v.masked_fill(fires, 0.0)
    real = None if lengths is None else ragged.real_tokens(lengths, x.size(1))
    spikes, _, end = _fire(x, state, reset, real, tau, threshold, slope)
    return spikes, end


@torch.library.custom_op("seriatim::lif_scan", mutates_args=())
def _fire(
    x: Tensor, state: Tensor, reset: Tensor | None, real: Tensor | None, tau: float, threshold: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, membranes before they fire, membranes at the end: one node to a compiler, however long."""
    spikes, charged, h = [], [], state
    empties, present = _columns(reset, x), _columns(real, x)
    for t, current in enumerate(x.unbind(1)):
        v = h if empties is None else h.masked_fill(empties[t], 0.0)
        v = torch.lerp(v, current, 1 / tau)
        fires = v >= threshold
        if present is not None:
            fires, v = fires & present[t], torch.where(present[t], v, h)
        h = v.masked_fill(fires, 0.0)
        spikes.append(fires)
        charged.append(v)
    if not spikes:
        return x.clone(), x.clone(), state.clone()
    return torch.stack(spikes, 1).to(x.dtype), torch.stack(charged, 1), h


@torch.library.custom_op("seriatim::lif_scan_backward", mutates_args=())
def _backward(
    grad_spikes: Tensor,
    grad_end: Tensor,
    spikes: Tensor,
    charged: Tensor,
    reset: Tensor | None,
    real: Tensor | None,
    tau: float,
    threshold: float,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """The gradients of x and the state."""
    soft = torch.sigmoid(slope * (charged - threshold))
    direct = grad_spikes * (slope * soft * (1 - soft))
    if real is not None:
        direct = ragged.mask(direct, real)
    found, grad, fired = [], grad_end, spikes != 0
    empties, present = _columns(reset, charged), _columns(real, charged)
    for t in reversed(range(charged.size(1))):
        grad_v = direct[:, t] + grad.masked_fill(fired[:, t], 0.0)
        found.append(grad_v)
        before = grad_v * (1 - 1 / tau)
        if empties is not None:
            before = before.masked_fill(empties[t], 0.0)
        grad = before if present is None else torch.where(present[t], before, grad)
    if not found:
        return torch.zeros_like(charged), grad.clone()
    grad_x = torch.stack(found[::-1], 1) / tau
    return (grad_x if real is None else ragged.mask(grad_x, real)), grad


@_fire.register_fake
def _(
    x: Tensor, state: Tensor, reset: Any, real: Any, tau: float, threshold: float, slope: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x), torch.empty_like(state)


@_backward.register_fake
def _(grad_spikes: Tensor, grad_end: Tensor, spikes: Tensor, charged: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(charged), torch.empty_like(grad_end)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, _, reset, real, *ctx.constants = inputs
    ctx.save_for_backward(*output[:2], reset, real)


def _gradients(ctx: Any, grad_spikes: Tensor, _: Tensor, grad_end: Tensor) -> tuple[Tensor | None, ...]:
    spikes, charged, reset, real = ctx.saved_tensors
    found = _backward(grad_spikes, grad_end, spikes, charged, reset, real, *ctx.constants)
    return *found, None, None, None, None, None


_fire.register_autograd(_gradients, setup_context=_save)


def _columns(flags: Tensor | None, like: Tensor) -> tuple[Tensor, ...] | None:
    """The columns of flags (B, T), each with as many dimensions as a token of `like`."""
    return None if flags is None else flags.view(*flags.shape, *[1] * (like.dim() - 2)).unbind(1)
