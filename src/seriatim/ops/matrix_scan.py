r"""A matrix memory written by outer products and faded by gates.

.. math:: S_t = \mathrm{diag}(e^{g_t}) S_{t-1} + k_t v_t^\top, \qquad o_t = s \, S_t^\top q_t

Dimensions: B batch, T time, H heads, G groups of heads, K key dim, V value dim, n chunks, C tokens of a chunk,
N = B H n.

The parallel path works on all chunks at once: inside a chunk the scores q k^T, each faded by the decay between its two
tokens; between chunks a scan of n states. Every decay is the exponential of a sum of the log decays that it spans,
never a quotient of two, so that any log decay is right, -inf included, and with it resets: a reset is a log decay of
-inf. Source: Yang et al., 2024, arXiv:2312.06635, section 4 (chunks); Dao and Gu, 2024, arXiv:2405.21060, section 6
(per head).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from seriatim.core.errors import check_divisible
from seriatim.core.linear import linear_in
from seriatim.kernels.cpu.matrix_scan import matrix_scan as compiled
from seriatim.kernels.cpu.shared_scan import shared_scan
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_reset, check_tensors
from seriatim.ops.precision import full_precision, widen

__all__ = ["matrix_scan", "reference"]

CHUNK_PER_HEAD = 64
CHUNK_PER_KEY = 32  # the work inside a chunk grows with its logarithm, but the temporaries then leave the cache


@linear_in("v")
def matrix_scan(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    *,
    scale: float = 1.0,
    state: Float[Tensor, "B H K V"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """Linear attention with decay: S = diag(exp(log_decay)) S + k v^T, o = scale S^T q.

    Args:
        q, k: (B, T, G, K), each of the G groups for H / G heads; usually G is H.
        v: (B, T, H, V).
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
    per_key = log_decay is not None and not per_head
    check_tensors(
        {
            "q": (q, "batch time groups keys"),
            "k": (k, "batch time groups keys"),
            "v": (v, "batch time heads values"),
            "log_decay": (log_decay, "batch time heads?" if per_head else "batch time heads keys?"),
            "state": (state, "batch heads keys values?"),
        }
    )
    check_reset(reset, q)
    shares = q.size(2) != v.size(2)
    if shares:
        check_divisible(heads=v.size(2), groups=q.size(2))
    if per_key:  # the decayed keys of heads that share them differ
        q, k = _repeat(q, v.size(2)), _repeat(k, v.size(2))
    *arguments, state = widen(q, k, v, log_decay, state)
    with full_precision(q.device):
        # One token is a few calls of PyTorch, which are no slower than the launch of a kernel.
        kernels = {"cpu": shared_scan if shares and not per_key else compiled} if q.size(1) != 1 else {}
        scan = choose({"reference": reference, "torch": chunked, **kernels}, arguments[0])
        o, state = scan(*arguments, scale=scale, state=state, reset=reset)
    return o.to(v.dtype), state


def reference(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    *,
    scale: float = 1.0,
    state: Float[Tensor, "B H K V"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """The equation, token by token."""
    if q.size(2) != v.size(2):
        q, k = (z.repeat_interleave(v.size(2) // z.size(2), 2) for z in (q, k))
    state = _empty(k, v) if state is None else state
    outputs = []
    for t in range(q.size(1)):
        if reset is not None:
            state = torch.where(reset[:, t, None, None, None], 0.0, state)
        if log_decay is not None:
            decay = log_decay[:, t].exp()
            state = (decay[:, :, None, None] if decay.dim() == 2 else decay[..., None]) * state
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, t]))
    return (torch.stack(outputs, 1) if outputs else v), state


def chunked(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    *,
    scale: float = 1.0,
    state: Float[Tensor, "B H K V"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """The same by products over chunks."""
    q, k = _repeat(q, v.size(2)), _repeat(k, v.size(2))
    state = _empty(k, v) if state is None else state
    batch, time, heads = q.shape[:3]
    if time == 0:
        return v, state
    q = q if scale == 1.0 else q * scale
    if time == 1:
        return _step(q, k, v, log_decay, state, reset)
    log_decay = _with_resets(log_decay, reset, q)
    per_head = log_decay.size(-1) == 1
    size = min(CHUNK_PER_HEAD if per_head else CHUNK_PER_KEY, 1 << (time - 1).bit_length())
    count = -(-time // size)
    q, k, v, log_decay = (_chunks(x, size, count) for x in (q, k, v, log_decay))
    scores, before, after, total = (_fade_per_head if per_head else _fade_per_key)(q, k, log_decay)
    written = (k * after.exp()).mT @ v
    states, state = _scan_chunks(total.exp(), written, state, count)
    o = torch.baddbmm(scores @ v, q * before.exp(), states)
    return o.reshape(batch, heads, count * size, v.size(-1))[:, :, :time].transpose(1, 2), state


def _repeat(x: Tensor, heads: int) -> Tensor:
    """(B, T, G, K) -> (B, T, H, K), of one group a view."""
    if x.size(2) == heads:
        return x
    return x.unsqueeze(3).expand(-1, -1, -1, heads // x.size(2), -1).flatten(2, 3)


def _empty(k: Tensor, v: Tensor) -> Tensor:
    return k.new_zeros(k.size(0), k.size(2), k.size(3), v.size(3))


def _step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token, as generation reads them: the equation itself in a few calls."""
    if reset is not None:
        state = state.masked_fill(reset[:, :, None, None], 0.0)
    if log_decay is not None:
        decay = log_decay[:, 0].exp()
        state = state * (decay[:, :, None, None] if decay.dim() == 2 else decay[..., None])
    state = torch.addcmul(state, k[:, 0, :, :, None], v[:, 0, :, None, :])
    return (q.transpose(1, 2) @ state).transpose(1, 2), state


def _with_resets(log_decay: Tensor | None, reset: Tensor | None, like: Tensor) -> Tensor:
    """Log decays (B, T, H, 1 or K) that are -inf where the memory is emptied."""
    if log_decay is None:
        log_decay = like.new_zeros(*like.shape[:3], 1)
    elif log_decay.dim() == 3:
        log_decay = log_decay.unsqueeze(-1)
    return log_decay if reset is None else log_decay.masked_fill(reset[:, :, None, None], float("-inf"))


def _chunks(x: Tensor, size: int, count: int) -> Tensor:
    """(B, T, H, F) -> (N, C, F), padded with tokens that write nothing and fade nothing."""
    batch, time, heads, features = x.shape
    x = x.transpose(1, 2)
    if time < count * size:
        x = F.pad(x, (0, 0, 0, count * size - time))
    return x.reshape(batch * heads * count, size, features)


def _fade_per_head(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores (N, C, C), and the log decays from the chunk's start to each token, from each to its end, over all of it.

    log_decay (N, C, 1). The decay between tokens j < i sums over j + 1 to i, taken as a running sum down column j.
    """
    size = log_decay.size(1)
    between = log_decay.expand(-1, -1, size).tril(-1).cumsum(1)
    before = log_decay.cumsum(1)
    scores = (q @ k.mT) * between.exp().tril()  # above the diagonal the sums are empty, so this exp cannot overflow
    return scores, before, between[:, -1:].mT, before[:, -1:]


def _fade_per_key(q: Tensor, k: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same for log_decay (N, C, K), by joining neighbouring blocks from single tokens up to the whole chunk.

    The scores of a right half with a left half are one product, because the decay between them splits at the border:
    from there to i, and from j to there. Both are sums over tokens of one half, so neither exponent is above 0 where no
    log decay is.
    """
    total = log_decay.unsqueeze(2)  # (N, blocks, tokens of a block, K), but total has one token a block
    before, after = total, torch.zeros_like(total)
    scores = (q * k).sum(-1)[..., None, None]
    half = 1
    while half < q.size(1):
        right_q, left_k = _halves(q, half)[1], _halves(k, half)[0]
        (left, right), (left_before, right_before) = _pairs(scores), _pairs(before)
        (left_after, right_after), (left_total, right_total) = _pairs(after), _pairs(total)
        across = (right_q * right_before.exp()) @ (left_k * left_after.exp()).mT
        scores = torch.cat([F.pad(left, (0, half)), torch.cat([across, right], -1)], -2)
        before = torch.cat([left_before, right_before + left_total], -2)
        after = torch.cat([left_after + right_total, right_after], -2)
        total = left_total + right_total
        half *= 2
    return scores.squeeze(1), before.squeeze(1), after.squeeze(1), total.squeeze(1)


def _halves(x: Tensor, half: int) -> tuple[Tensor, ...]:
    """(N, C, K) -> the left and the right half of each block of 2 half tokens, (N, blocks, half, K)."""
    return x.unflatten(1, (x.size(1) // (2 * half), 2, half)).unbind(2)


def _pairs(x: Tensor) -> tuple[Tensor, ...]:
    """(N, blocks, ...) -> the even and the odd blocks."""
    return x.unflatten(1, (x.size(1) // 2, 2)).unbind(2)


def _scan_chunks(decay: Tensor, written: Tensor, state: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The state before each chunk (N, K, V) and the last one (B, H, K, V). decay (N, 1, 1 or K), written (N, K, V)."""
    batch, heads = state.shape[:2]
    shape = (batch, heads, count)
    states = []
    for fade, new in zip(decay.mT.unflatten(0, shape).unbind(2), written.unflatten(0, shape).unbind(2), strict=True):
        states.append(state)
        state = torch.addcmul(new, fade, state)
    return torch.stack(states, 2).flatten(0, 2), state
