"""The softmax over every prefix of a sequence, as a recurrence of three running quantities.

m_t = max(m_{t-1}, s_t),   c_t = e^{m_{t-1} - m_t} c_{t-1} + e^{s_t - m_t},
w_t = e^{m_{t-1} - m_t} w_{t-1} + e^{s_t - m_t} v_t,   o_t = w_t / c_t.

Dimensions: B batch, T time, H heads, D value dim; N chunks of C tokens. Source: Feng et al., 2024, arXiv:2405.13956.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.core.linear import linear_in
from seriatim.core.mixer import state_dtype
from seriatim.kernels.cpu.softmax_scan import softmax_scan as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_reset, check_tensors
from seriatim.ops.precision import compute_dtype, full_precision

__all__ = ["SoftmaxState", "init_softmax_state", "softmax_scan"]

_CHUNK = 32


class SoftmaxState(NamedTuple):
    """What the prefix so far amounts to. The maximum is a gauge: e^maximum times the others is what counts."""

    maximum: Tensor  # (B, H), -inf before anything was read
    total: Tensor  # (B, H)
    weighted: Tensor  # (B, H, D)


def init_softmax_state(batch: int, heads: int, dim: int, like: Tensor) -> SoftmaxState:
    """The state before anything was read, on the device of `like`, in its dtype or float32 where that is half."""
    zeros = like.new_zeros(batch, heads, dim, dtype=state_dtype(like.dtype))
    total = zeros.new_zeros(batch, heads)
    return SoftmaxState(torch.full_like(total, float("-inf")), total, zeros)


@linear_in("values")
def softmax_scan(
    scores: Float[Tensor, "B T H"],
    values: Float[Tensor, "B T H D"],
    *,
    state: SoftmaxState | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H D"], SoftmaxState]:
    r"""The mean of the values so far, weighted by the exponentials of their scores, after every token.

    .. math:: o_t = \sum_{i \le t} e^{s_i} v_i \Big/ \sum_{i \le t} e^{s_i}

    Args:
        scores: (B, T, H), of any size: only differences are exponentiated. -inf is a token that is not there.
        values: (B, T, H, D), finite.
        state: what an earlier call returned; None is nothing read.
        reset: (B, T) bool, a new document begins at this token.

    Returns:
        o (B, T, H, D) in the dtype of values, 0 where no token was there yet, and the state after the last token.

    Raises:
        SeriatimError: an argument has another shape or dtype than the above.
    """
    state = _checked(scores, values, state, reset)
    wide = (z.to(state.total.dtype) for z in (scores, values))
    with full_precision(values.device):
        run = choose({"reference": reference, "torch": _parallel, "cpu": compiled}, state.total)
        out, state = run(*wide, state=state, reset=reset)
    return out.to(values.dtype), state


def reference(
    scores: Tensor, values: Tensor, *, state: SoftmaxState | None = None, reset: Tensor | None = None
) -> tuple[Tensor, SoftmaxState]:
    """The recurrence, token by token. Shapes as in :func:`softmax_scan`."""
    (maximum, total, weighted), out = state or _empty(scores, values), []
    for t in range(scores.size(1)):
        score, value = scores[:, t].to(total.dtype), values[:, t].to(total.dtype)
        if reset is not None:
            begins = reset[:, t, None]
            maximum = maximum.masked_fill(begins, float("-inf"))
            total, weighted = total.masked_fill(begins, 0), weighted.masked_fill(begins[..., None], 0)
        before, maximum = maximum, torch.maximum(maximum, score)
        zero = maximum.masked_fill(maximum == float("-inf"), 0)  # never (-inf) - (-inf)
        kept, new = (before - zero).exp(), (score - zero).exp()
        total = total * kept + new
        weighted = weighted * kept[..., None] + new[..., None] * value
        out.append(weighted / total.masked_fill(total == 0, 1)[..., None])
    o = torch.stack(out, 1) if out else torch.zeros_like(values)
    return o.to(values.dtype), SoftmaxState(maximum, total, weighted)


def _parallel(
    scores: Tensor, values: Tensor, *, state: SoftmaxState, reset: Tensor | None
) -> tuple[Tensor, SoftmaxState]:
    """The same by a parallel prefix scan.

    Maxima of prefixes are held constant while differentiating: they are a gauge on which no output depends.
    """
    if scores.size(1) == 0:
        return torch.zeros_like(values), state
    wide = scores.to(state.total.dtype).transpose(1, 2)
    tokens = SoftmaxState(wide, torch.ones_like(wide), values.to(state.total.dtype).transpose(1, 2))
    begins = None if reset is None else reset[:, None]
    maximum, total, weighted = _prefixes(tokens, begins, state)
    out = weighted / total.masked_fill(total == 0, 1)[..., None]
    # Cloned: a view would keep the prefixes of all tokens in memory for as long as the state lives.
    final = SoftmaxState(*(leaf[:, :, -1].clone() for leaf in (maximum, total, weighted)))
    if torch.is_grad_enabled() and (wide.requires_grad or state.maximum.requires_grad):
        final = _in_true_gauge(final, wide, begins, state.maximum)
    return out.transpose(1, 2).to(values.dtype), final


def _prefixes(parts: SoftmaxState, begins: Tensor | None, carried: SoftmaxState) -> SoftmaxState:
    """What `carried` and the parts up to each one amount to: (B, H, T), (B, H, T), (B, H, T, D). begins (B, 1, T) bool.

    Inside chunks by a masked product; what is carried into each chunk by this function on the ends of the chunks.
    """
    time = parts.maximum.size(2)
    first = SoftmaxState(*(leaf.unsqueeze(2) for leaf in carried))
    if time == 1:
        return _merge(first, parts, begins)
    chunk = min(time, _CHUNK)
    padding = -time % chunk
    maximum = F.pad(parts.maximum, (0, padding), value=float("-inf")).unflatten(2, (-1, chunk))
    total = F.pad(parts.total, (0, padding)).unflatten(2, (-1, chunk))
    weighted = F.pad(parts.weighted, (0, 0, 0, padding)).unflatten(2, (-1, chunk))
    begins = None if begins is None else F.pad(begins, (0, padding)).unflatten(2, (-1, chunk))
    inside = _inside(SoftmaxState(maximum, total, weighted), begins)
    before = first
    if maximum.size(2) > 1:
        ends = SoftmaxState(*(leaf[:, :, :-1, -1] for leaf in inside))
        later = _prefixes(ends, None if begins is None else begins[:, :, :-1].any(3), carried)
        before = SoftmaxState(*(torch.cat(pair, 2) for pair in zip(first, later, strict=True)))
    before = SoftmaxState(*(leaf.unsqueeze(3) for leaf in before))
    whole = _merge(before, inside, None if begins is None else begins.cummax(3).values)
    return SoftmaxState(*(leaf.flatten(2, 3)[:, :, :time] for leaf in whole))


def _inside(parts: SoftmaxState, begins: Tensor | None) -> SoftmaxState:
    """The prefixes inside each chunk alone: (B, H, N, C), (B, H, N, C), (B, H, N, C, D). begins (B, 1, N, C) bool."""
    chunk = parts.maximum.size(3)
    seen = torch.ones(chunk, chunk, dtype=torch.bool, device=parts.maximum.device).tril()
    if begins is not None:
        segment = begins.long().cumsum(3)
        seen = seen & (segment[..., :, None] == segment[..., None, :])
    scores = parts.maximum[..., None, :].masked_fill(~seen, float("-inf"))
    maximum = scores.detach().amax(-1)
    weights = (scores - _finite(maximum)[..., None]).exp()
    return SoftmaxState(maximum, (weights @ parts.total[..., None]).squeeze(-1), weights @ parts.weighted)


def _merge(before: SoftmaxState, after: SoftmaxState, begun: Tensor | None) -> SoftmaxState:
    """A stretch and the one after it as one; the earlier is forgotten where `begun` is true."""
    earlier = before.maximum if begun is None else before.maximum.masked_fill(begun, float("-inf"))
    maximum = torch.maximum(earlier, after.maximum).detach()
    left, right = (earlier - _finite(maximum)).exp(), (after.maximum - _finite(maximum)).exp()
    total = left * before.total + right * after.total
    return SoftmaxState(maximum, total, left[..., None] * before.weighted + right[..., None] * after.weighted)


def _finite(maximum: Tensor) -> Tensor:
    """0 where the maximum is -inf, so that nothing read is e^(-inf - 0) = 0 and not e^(-inf + inf)."""
    return maximum.masked_fill(maximum == float("-inf"), 0)


def _in_true_gauge(final: SoftmaxState, scores: Tensor, begins: Tensor | None, carried: Tensor) -> SoftmaxState:
    """The same values, the maximum now differentiable and total and weighted scaled by it. scores (B, H, T)."""
    if begins is not None:
        segment = begins.long().cumsum(2)
        scores = scores.masked_fill(segment < segment[:, :, -1:], float("-inf"))
        carried = carried.masked_fill(begins.any(2), float("-inf"))
    maximum = torch.maximum(scores.amax(2), carried)
    scale = (final.maximum - maximum).masked_fill(maximum == float("-inf"), 0).exp()
    return SoftmaxState(maximum, final.total * scale, final.weighted * scale[..., None])


def _checked(scores: Tensor, values: Tensor, state: SoftmaxState | None, reset: Tensor | None) -> SoftmaxState:
    """The state to start from, in the dtype to compute in. Raises SeriatimError for arguments that do not fit."""
    check_tensors({"values": (values, "batch time heads dim"), "scores": (scores, "batch time heads")})
    check_reset(reset, values)
    if state is None:
        return _empty(scores, values)
    if not isinstance(state, tuple) or len(state) != 3:
        raise SeriatimError(f"state is a {type(state).__name__}; it must be a SoftmaxState")
    maximum, total, weighted = state
    check_tensors(
        {
            "values": (values, "batch time heads dim"),
            "state.maximum": (maximum, "batch heads"),
            "state.total": (total, "batch heads"),
            "state.weighted": (weighted, "batch heads dim"),
        }
    )
    dtype = compute_dtype(scores, values, *state)
    return SoftmaxState(maximum.to(dtype), total.to(dtype), weighted.to(dtype))


def _empty(scores: Tensor, values: Tensor) -> SoftmaxState:
    batch, _, heads, dim = values.shape
    return init_softmax_state(batch, heads, dim, like=values.new_empty(0, dtype=compute_dtype(scores, values)))
