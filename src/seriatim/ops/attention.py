"""Softmax attention within documents: over all that was read, over a window, or over both sides.

Dimensions: B batch, T time, H query heads, G key-value heads, K key dim, V value dim, S slots, W window.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError
from seriatim.core.linear import linear_in
from seriatim.kernels.cpu.attention import QUERIES
from seriatim.kernels.cpu.attention import attention as compiled
from seriatim.ops.backend import choose
from seriatim.ops.caches import (
    AttentionState,
    WindowState,
    append,
    init_attention_state,
    init_window_state,
    read_segment,
    turn,
    visible_slots,
)
from seriatim.ops.checks import check_lengths, check_reset, check_tensors
from seriatim.ops.masked_attention import bidirectional, full, windowed
from seriatim.ops.precision import compute_dtype

__all__ = [
    "AttentionState",
    "WindowState",
    "attention",
    "init_attention_state",
    "init_window_state",
]


@linear_in("v")
def attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T G V"],
    *,
    causal: bool = True,
    window: int | None = None,
    state: AttentionState | WindowState | tuple[()] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    lengths: Int[Tensor, "B"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Any]:
    r"""Each token's mean of the values it sees, weighted by the softmax of their keys' products with its query.

    .. math:: o_t = \sum_i \mathrm{softmax}_i(q_t \cdot k_i / \sqrt{K})\, v_i

    A token sees the tokens of its own document up to itself: all of them, or with `window` the last W, itself among
    them. With causal=False it sees its whole document. Positions, if any, are the caller's to turn into q and k;
    `seriatim.core.ragged.positions(reset, state.length, T)` tells them.

    Args:
        q: (B, T, H, K).
        k: (B, T, G, K); each of the G heads serves H / G heads of q.
        v: (B, T, G, V).
        causal: whether tokens see only what was before them.
        window: W, how many tokens are seen; None is all.
        state: what an earlier call returned; None is nothing read.
        reset: (B, T) bool, a new document begins at this token.
        lengths: (B,) int, the state stops after lengths[b] tokens; the outputs of the padding are 0.

    Returns:
        o (B, T, H, V) in the dtype of q, and the state: an AttentionState, which grows by T slots a call; with
        `window` a WindowState, which does not grow; `()` if not causal.

    Raises:
        SeriatimError: an argument has another value, shape or dtype than the above.

    Source: Vaswani et al., 2017, arXiv:1706.03762; shared keys: arXiv:2305.13245; window: arXiv:2004.05150.
    """
    state = _checked(q, k, v, causal, window, state, reset, lengths)
    if lengths is not None:  # the padding is zeros, and sees only padding: its outputs are 0
        lengths = lengths.to(q.device, torch.int64)
        real = ragged.real_tokens(lengths, q.size(1))
        q, k, v = (ragged.mask(z, real) for z in (q, k, v))
    run = choose({"reference": reference, "torch": _fused, "cpu": _compiled}, q)
    return run(q, k, v, causal=causal, window=window, state=state, reset=reset, lengths=lengths)


def _fused(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
    state: Any,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Any]:
    """The same by fused products. Half precision stays so: the products are added up in float32."""
    if q.size(1) == 0:
        return q.new_zeros(*q.shape[:3], v.size(3)), state
    dtype, wanted = torch.promote_types(q.dtype, torch.promote_types(k.dtype, v.dtype)), q.dtype
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if not causal:
        return bidirectional(q, k, v, reset, lengths).to(wanted), ()
    out, state = (full if window is None else windowed)(q, k, v, state, reset, lengths)
    return out.to(wanted), state


def _compiled(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    window: int | None,
    state: Any,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> tuple[Tensor, Any]:
    """The same by the compiled kernel where it is the faster, and by fused products elsewhere."""
    if not causal or state.keys.dtype != torch.float32 or not _worth_a_kernel(q, window):
        return _fused(q, k, v, causal=causal, window=window, state=state, reset=reset, lengths=lengths)
    segment = read_segment(q.size(1), state.length, reset, lengths)
    carried, k, v = visible_slots(state, window), k.float(), v.float()
    out = compiled(q, k, v, *carried, reset, lengths, window)
    return out, append(state, k, v, segment) if window is None else turn(state, k, v, segment)


def _worth_a_kernel(q: Tensor, window: int | None) -> bool:
    """From 64 tokens and 2^17 scores on: measured on one core, for 16 to 256 features a head, forward and backward.

    With fewer, or with tokens that do not fill a block, PyTorch's own product is as fast or faster.
    """
    batch, time, heads, _ = q.shape
    return time >= QUERIES and batch * heads * time * min(time, window or time) >= 1 << 17


class _Token(NamedTuple):
    time: int  # in the segment; -1 if it was carried
    position: int  # in its document
    key: Tensor  # (G, K)
    value: Tensor  # (G, V)


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    state: Any = None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """For every query the list of tokens it sees, a softmax, a sum. Shapes as in :func:`attention`."""
    wanted, dtype = q.dtype, compute_dtype(q, k, v)
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    if causal and not state:
        state = _fresh(k, v, window, dtype)
    out, ends = [], []
    for b in range(q.size(0)):
        time = q.size(1) if lengths is None else int(lengths[b])
        carried, following = _carried(state, b) if causal else ([], 0)
        documents, homes = [carried], []
        for t in range(time):
            if reset is not None and reset[b, t]:
                documents.append([])
                following = 0
            homes.append((documents[-1], following))
            documents[-1].append(_Token(t, following, k[b, t], v[b, t]))
            following += 1
        rows = [_answer(q[b, t], *homes[t], causal, window) for t in range(time)]
        padding = v.new_zeros(q.size(1) - time, q.size(2), v.size(3))
        out.append(torch.cat([torch.stack(rows), padding]) if rows else padding)
        ends.append((documents, following))
    o = torch.stack(out) if out else v.new_zeros(*q.shape[:3], v.size(3))
    if not causal:
        return o.to(wanted), ()
    return o.to(wanted), _grown(state, k, v, ends) if window is None else _turned(state, ends)


def _carried(state: AttentionState | WindowState, b: int) -> tuple[list[_Token], int]:
    """The tokens that row b remembers, and the position of the next."""
    slots = zip(state.position[b].tolist(), state.keys[b], state.values[b], strict=True)
    return [_Token(-1, *slot) for slot in slots if slot[0] >= 0], int(state.length[b])


def _answer(q: Tensor, document: list[_Token], position: int, causal: bool, window: int | None) -> Tensor:
    """The output (H, V) of one token, q (H, K)."""
    seen = [z for z in document if not causal or z.position <= position]
    seen = [z for z in seen if window is None or z.position > position - window]
    shared = q.size(0) // seen[0].key.size(0)
    out = []
    for h in range(q.size(0)):
        scores = torch.stack([q[h] @ z.key[h // shared] for z in seen]) * q.size(1) ** -0.5
        values = torch.stack([z.value[h // shared] for z in seen])
        out.append((scores.softmax(0)[:, None] * values).sum(0))
    return torch.stack(out)


def _grown(state: AttentionState, k: Tensor, v: Tensor, ends: list[tuple[list[list[_Token]], int]]) -> AttentionState:
    """One slot more for every token; only those of the last document keep a position."""
    old, new = state.position.clone(), state.position.new_full(k.shape[:2], -1)
    for b, (documents, _) in enumerate(ends):
        if len(documents) > 1:
            old[b] = -1
        for z in documents[-1]:
            if z.time >= 0:
                new[b, z.time] = z.position
    following = [end for _, end in ends]
    return AttentionState(
        torch.cat([state.keys, k], 1),
        torch.cat([state.values, v], 1),
        torch.cat([old, new], 1),
        torch.tensor(following, dtype=torch.int64, device=k.device),
    )


def _turned(state: WindowState, ends: list[tuple[list[list[_Token]], int]]) -> WindowState:
    """The last tokens of the last document, each in the slot of its position; zeros where an ended document was."""
    window, rows = state.position.size(1), []
    for b, (documents, following) in enumerate(ends):
        slots = {z.position % window: z for z in documents[-1] if z.position >= following - window}
        old = state if len(documents) == 1 else WindowState(*(torch.zeros_like(leaf) for leaf in state))
        ring = [slots.get(i, _Token(-1, -1, old.keys[b, i], old.values[b, i])) for i in range(window)]
        position = torch.tensor([z.position for z in ring], device=state.keys.device)
        length = torch.tensor(following, device=state.keys.device)
        rows.append((torch.stack([z.key for z in ring]), torch.stack([z.value for z in ring]), position, length))
    return WindowState(*(torch.stack(leaf) for leaf in zip(*rows, strict=True))) if rows else state


def _fresh(k: Tensor, v: Tensor, window: int | None, dtype: torch.dtype) -> AttentionState | WindowState:
    sizes, like = (k.size(2), k.size(3), v.size(3)), k.new_empty(0, dtype=dtype)
    if window is None:
        return init_attention_state(k.size(0), *sizes, like=like)
    return init_window_state(k.size(0), window, *sizes, like=like)


def _checked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    window: int | None,
    state: Any,
    reset: Tensor | None,
    lengths: Tensor | None,
) -> Any:
    """The state to start from, in the dtype to keep it in. Raises SeriatimError for arguments that do not fit."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise SeriatimError(f"window is {window!r}; it must be None or a whole number above 0")
    if window is not None and not causal:
        raise SeriatimError(f"window is {window} with causal=False; a window is causal")
    nothing = state is None or (isinstance(state, tuple) and len(state) == 0)
    kind = AttentionState if window is None else WindowState
    if not (nothing or (causal and isinstance(state, kind))):
        wanted = kind.__name__ if causal else "() or None"
        raise SeriatimError(
            f"state is a {type(state).__name__}; with causal={causal}, window={window} it must be {wanted}"
        )
    arguments: dict[str, tuple[Tensor | None, str]] = {
        "q": (q, "batch time heads keys"),
        "k": (k, "batch time groups keys"),
        "v": (v, "batch time groups values"),
    }
    if not nothing:
        arguments["state.keys"] = (state.keys, "batch slots groups keys")
        arguments["state.values"] = (state.values, "batch slots groups values")
    sizes = check_tensors(arguments)
    if q.size(3) == 0:
        raise SeriatimError(f"q has shape {tuple(q.shape)}; a product of queries and keys needs at least 1 feature")
    if sizes["groups"] < 1 or sizes["heads"] % sizes["groups"]:
        raise SeriatimError(f"q has {sizes['heads']} heads; it must be a multiple of the {sizes['groups']} heads of k")
    check_reset(reset, q)
    check_lengths(lengths, q)
    if nothing:
        return _fresh(k, v, window, compute_dtype(q, k, v)) if causal else ()
    if window is not None and window != sizes["slots"]:
        raise SeriatimError(f"state.keys has {sizes['slots']} slots; with window={window} it must have {window}")
    _check_integers("state.position", state.position, (sizes["batch"], sizes["slots"]))
    _check_integers("state.length", state.length, (sizes["batch"],))
    dtype = compute_dtype(q, k, v, state.keys, state.values)
    return state._replace(keys=state.keys.to(dtype), values=state.values.to(dtype))


def _check_integers(name: str, leaf: Tensor, shape: tuple[int, ...]) -> None:
    if leaf.dtype != torch.int64 or leaf.shape != shape:
        raise SeriatimError(f"{name} is {leaf.dtype} {tuple(leaf.shape)}; it must be torch.int64 {shape}")
