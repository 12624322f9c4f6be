r"""A matrix memory whose transition is diagonal plus rank one: a token writes what it reads, under another key.

.. math::
    S_t = \mathrm{diag}(e^{g_t}) S_{t-1} + w_t (S_{t-1}^\top r_t)^\top + k_t v_t^\top, \qquad o_t = s \, S_t^\top q_t

Dimensions: B batch, T time, H heads, K key dim, V value dim.

The delta rule is the special case of r = -beta diag(e^g) k, w = k and values beta v, in which both writes are one:
:mod:`seriatim.ops.delta_scan`, which shares the chunks (:mod:`seriatim.ops.delta_chunks`) and the kernels. A reset is a
log decay of -inf and a read of 0 to them. Source: Peng et al., 2025, arXiv:2503.14456, section 3.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from seriatim.core.linear import linear_in
from seriatim.kernels.cpu.delta_scan import dplr_scan as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_reset, check_tensors
from seriatim.ops.delta_chunks import chunk_size, scan
from seriatim.ops.precision import full_precision, widen

__all__ = ["dplr_scan", "reference"]


@linear_in("v")
def dplr_scan(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H K"],
    read: Float[Tensor, "B T H K"],
    write: Float[Tensor, "B T H K"],
    *,
    scale: float = 1.0,
    state: Float[Tensor, "B H K V"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """S = diag(exp(log_decay)) S + write (S^T read)^T + k v^T, o = scale S^T q.

    Args:
        q, k: (B, T, H, K).
        v: (B, T, H, V).
        log_decay: (B, T, H, K). Any size, -inf included; usually not above 0.
        read, write: (B, T, H, K). Where a transition diag(exp(log_decay)) + write read^T has eigenvalues beyond 1, the
            memory grows, as the equation says.
        scale: a factor on q.
        state: (B, H, K, V), what an earlier call returned; None is zeros.
        reset: (B, T) bool, the memory is emptied before this token reads.

    Returns:
        o (B, T, H, V) in the dtype of v, and the state after the last token, in float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    by_key = {"q": q, "k": k, "log_decay": log_decay, "read": read, "write": write}
    check_tensors(
        {
            **{name: (z, "batch time heads keys") for name, z in by_key.items()},
            "v": (v, "batch time heads values"),
            "state": (state, "batch heads keys values?"),
        }
    )
    check_reset(reset, q)
    arguments = widen(q, k, v, log_decay, read, write, state)
    with full_precision(q.device):
        run = choose({"reference": reference, "torch": chunked, "cpu": compiled}, arguments[0])
        o, state = run(*arguments[:-1], scale=scale, state=arguments[-1], reset=reset)
    return o.to(v.dtype), state


def reference(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H K"],
    read: Float[Tensor, "B T H K"],
    write: Float[Tensor, "B T H K"],
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
        found = torch.einsum("bhkv,bhk->bhv", state, read[:, t])
        state = log_decay[:, t, :, :, None].exp() * state + write[:, t, :, :, None] * found[:, :, None, :]
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return (torch.stack(outputs, 1) if outputs else v), state


def chunked(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H K"],
    read: Float[Tensor, "B T H K"],
    write: Float[Tensor, "B T H K"],
    *,
    scale: float = 1.0,
    state: Float[Tensor, "B H K V"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """The same by products and a triangular solve over chunks."""
    state = _empty(k, v) if state is None else state
    if q.size(1) == 0:
        return v, state
    q = q if scale == 1.0 else q * scale
    if q.size(1) == 1:
        return _step(q, k, v, log_decay, read, write, state, reset)
    if reset is not None:
        begins = reset[:, :, None, None]
        log_decay, read = log_decay.masked_fill(begins, float("-inf")), read.masked_fill(begins, 0.0)
    o, state, _ = scan(q, k, v, log_decay, state, None, read, write, chunk_size(log_decay))
    return o, state


def _empty(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(k.size(0), k.size(2), k.size(3), v.size(3))


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    read: Tensor,
    write: Tensor,
    state: Tensor,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One token, as generation reads them: the equation itself in a few calls."""
    if reset is not None:
        state = state.masked_fill(reset[:, :, None, None], 0.0)
    q, k, v, read, write = (z.transpose(1, 2) for z in (q, k, v, read, write))
    found = read @ state
    state = torch.addcmul(state * log_decay[:, 0].exp()[..., None], write.mT, found)
    state = torch.addcmul(state, k.mT, v)
    return (q @ state).transpose(1, 2), state
