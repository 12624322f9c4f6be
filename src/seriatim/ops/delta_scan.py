r"""A matrix memory that corrects what it holds instead of adding to it: the delta rule.

.. math::
    \tilde S_t = \mathrm{diag}(e^{g_t}) S_{t-1}, \qquad
    S_t = \tilde S_t + \beta_t k_t (v_t - \tilde S_t^\top k_t)^\top, \qquad o_t = s \, S_t^\top q_t

Dimensions: B batch, T time, H heads, K key dim, V value dim.

The parallel path (:mod:`seriatim.ops.delta_chunks`) solves a triangular system for what the tokens of a chunk write; a
reset is a log decay of -inf to it. Source: Schlag et al., 2021, arXiv:2102.11174, section 4.2; with decay Yang et al.,
2024, arXiv:2412.06464, section 3 (per head), and Kimi Team, 2025, arXiv:2510.26692, section 3 (per key feature).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seriatim.core.linear import linear_in
from seriatim.kernels.cpu.delta_scan import delta_scan as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_reset, check_tensors
from seriatim.ops.delta_chunks import chunk_size, scan
from seriatim.ops.precision import full_precision, widen

__all__ = ["delta_scan", "reference"]


@linear_in("v")
def delta_scan(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    beta: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    *,
    scale: float = 1.0,
    state: Float[Tensor, "B H K V"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """S = diag(exp(log_decay)) S, then S = S + beta k (v - S^T k)^T, o = scale S^T q.

    Args:
        q, k: (B, T, H, K). Where beta |k|^2 is above 2 the memory grows, as the equation says.
        v: (B, T, H, V).
        beta: (B, T, H), how much of the error is corrected: 0 for nothing, 1 for all of it where |k| = 1.
        log_decay: None for no decay, (B, T, H) for one a head, (B, T, H, K) for one a key feature. Any size, -inf
            included; usually not above 0.
        scale: a factor on q.
        state: (B, H, K, V), what an earlier call returned; None is zeros.
        reset: (B, T) bool, the memory is emptied before this token writes.

    Returns:
        o (B, T, H, V) in the dtype of v, and the state after the last token, in float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    per_head = isinstance(log_decay, Tensor) and log_decay.dim() == 3
    check_tensors(
        {
            "q": (q, "batch time heads keys"),
            "k": (k, "batch time heads keys"),
            "v": (v, "batch time heads values"),
            "beta": (beta, "batch time heads"),
            "log_decay": (log_decay, "batch time heads?" if per_head else "batch time heads keys?"),
            "state": (state, "batch heads keys values?"),
        }
    )
    check_reset(reset, q)
    arguments = widen(q, k, v, beta, log_decay, state)
    with full_precision(q.device):
        run = choose({"reference": reference, "torch": chunked, "cpu": compiled}, arguments[0])
        o, state = run(*arguments[:-1], scale=scale, state=arguments[-1], reset=reset)
    return o.to(v.dtype), state


def reference(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    beta: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    *,
    scale: float = 1.0,
    state: Float[Tensor, "B H K V"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """The equation, token by token."""
    state = _empty(k, v) if state is None else state
    outputs = []
    for t in range(q.size(1)):
        if reset is not None:
            state = torch.where(reset[:, t, None, None, None], 0.0, state)
        if log_decay is not None:
            decay = log_decay[:, t].exp()
            state = (decay[:, :, None, None] if decay.dim() == 2 else decay[..., None]) * state
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t])
        state = state + beta[:, t, :, None, None] * k[:, t, :, :, None] * error[:, :, None, :]
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return (torch.stack(outputs, 1) if outputs else v), state


def chunked(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    beta: Float[Tensor, "B T H"],
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    *,
    scale: float = 1.0,
    state: Float[Tensor, "B H K V"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """The same by products and a triangular solve over chunks."""
    state = _empty(k, v) if state is None else state
    time = q.size(1)
    if time == 0:
        return v, state
    q = q if scale == 1.0 else q * scale
    if time == 1:
        return _step(q, k, v, beta, log_decay, state, reset)
    if log_decay is None:
        log_decay = torch.zeros_like(beta)
    if log_decay.dim() == 3:
        log_decay = log_decay.unsqueeze(-1)
    if reset is not None:
        log_decay = log_decay.masked_fill(reset[:, :, None, None], float("-inf"))
    o, state, _ = scan(q, k, v, log_decay, state, beta.unsqueeze(-1), None, None, chunk_size(log_decay))
    return o, state


def _empty(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(k.size(0), k.size(2), k.size(3), v.size(3))


def _step(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token, as generation reads them: the equation itself in a few calls."""
    if reset is not None:
        state = state.masked_fill(reset[:, :, None, None], 0.0)
    if log_decay is not None:
        decay = log_decay[:, 0].exp()
        state = state * (decay[:, :, None, None] if decay.dim() == 2 else decay[..., None])
    keys = k.transpose(1, 2)
    written = beta.mT.unsqueeze(-1) * (v.transpose(1, 2) - keys @ state)
    state = torch.addcmul(state, keys.mT, written)
    return (q.transpose(1, 2) @ state).transpose(1, 2), state
