"""The torch paths of `attention`: which keys each query sees, as a mask or as blocks, and one fused product.

Dimensions: B batch, T time, S keys, H query heads, G key-value heads, K key dim, V value dim, W window, N blocks of C.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.ops.caches import AttentionState, Segment, WindowState, append, known_empty, read_segment, turn, turn_one

__all__ = ["bidirectional", "full", "windowed"]

_BLOCK = 64  # blocks shorter than this cost more in calls than they save in masked products
_STRIDE = 1024  # tokens whose blocks are attended to at once
_PADDING, _EMPTY = -1, -2


class _Places(NamedTuple):
    """Where tokens stand: a query sees a key of the same document that is not later, nor `window` earlier."""

    document: Tensor  # (B, T) int64: 0 goes on with the carried document, _PADDING and _EMPTY belong to none
    time: Tensor  # (B, T) int64: counted from the first token of the call; tokens carried are below 0


def full(
    q: Tensor, k: Tensor, v: Tensor, state: AttentionState, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, AttentionState]:
    """Each token sees all of its document up to itself."""
    segment = read_segment(q.size(1), state.length, reset, lengths)
    after = append(state, k, v, segment)
    if q.size(1) == 1 and lengths is None:
        return _step(q, after), after
    if state.keys.size(1) == 0:
        if segment.document is None:
            return _attend(q, k, v, causal=True), after
        mask = _visible(_of_tokens(segment), _of_tokens(segment))
        return _attend(q, k, v, mask), after
    queries = _of_tokens(segment)
    mask = _visible(queries, _joined(_of_cache(state), queries))
    return _attend(q, after.keys.to(q.dtype), after.values.to(q.dtype), mask), after


def bidirectional(q: Tensor, k: Tensor, v: Tensor, reset: Tensor | None, lengths: Tensor | None) -> Tensor:
    """Each token sees all of its document, on both sides."""
    document = read_segment(q.size(1), q.new_zeros(q.size(0), dtype=torch.int64), reset, lengths).document
    return _attend(q, k, v, None if document is None else document[:, :, None] == document[:, None])


def windowed(
    q: Tensor, k: Tensor, v: Tensor, state: WindowState, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, WindowState]:
    """Each token sees its document's last W tokens up to itself."""
    if q.size(1) == 1 and lengths is None:
        after = turn_one(state, k, v, reset)
        return _step(q, after), after
    segment = read_segment(q.size(1), state.length, reset, lengths)
    after = turn(state, k, v, segment)
    window = state.position.size(1)
    places = _of_tokens(segment)
    if q.size(1) > max(window, _BLOCK):
        return _in_blocks(q, k, v, state, places, together=segment.document is None), after
    if known_empty(state):
        if segment.document is None and q.size(1) <= window:
            return _attend(q, k, v, causal=True), after
        return _attend(q, k, v, _visible(places, places, window)), after
    mask = _visible(places, _joined(_of_cache(state), places), window)
    keys, values = torch.cat([state.keys.to(k.dtype), k], 1), torch.cat([state.values.to(v.dtype), v], 1)
    return _attend(q, keys, values, mask), after


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, ring: WindowState, places: _Places, together: bool) -> Tensor:
    """Blocks at least as long as the window: each sees itself and the one before, the first sees the ring.

    A few blocks at a time, so that what is formed on the way stays in the processor's caches, however long the segment.
    `together`: all tokens go on with the carried document, so that after the ring one mask serves all blocks.
    """
    window = ring.position.size(1)
    block = max(window, _BLOCK)
    stride = max(block, _STRIDE - _STRIDE % block)
    # Split, not sliced: the gradient of a slice is as large as the whole, so that of all slices would be quadratic.
    tokens = list(zip(*(z.split(stride, 1) for z in (k, v, *places)), strict=True))
    before = tuple(
        F.pad(z, [0, 0] * (z.dim() - 2) + [block - window, 0], value=_fill(z))
        for z in (ring.keys.to(k.dtype), ring.values.to(v.dtype), *_of_cache(ring))
    )
    out = []
    for i, queries in enumerate(q.split(stride, 1)):
        keys, values, *pairs = (_pairs(z, first, block) for z, first in zip(tokens[i], before, strict=True))
        seen = _Places(*(z[:1] if together and i > 0 else z for z in pairs))
        mask = _visible(_Places(*(z[:, block:] for z in seen)), seen, window)
        found = _attend(_blocks(queries, block).flatten(0, 1), keys, values, mask)
        out.append(found.unflatten(0, (q.size(0), -1)).flatten(1, 2)[:, : queries.size(1)])
        before = tuple(z[:, -block:] for z in tokens[i])
    return torch.cat(out, 1)


def _blocks(tokens: Tensor, block: int) -> Tensor:
    """(B, T, ...) in blocks (B, N, C, ...); the last is filled up with padding."""
    padding = -tokens.size(1) % block
    return F.pad(tokens, [0, 0] * (tokens.dim() - 2) + [0, padding], value=_fill(tokens)).unflatten(1, (-1, block))


def _fill(tokens: Tensor) -> int:
    return 0 if tokens.is_floating_point() else _PADDING


def _pairs(tokens: Tensor, before: Tensor, block: int) -> Tensor:
    """Each block after the one before it: (B * N, 2 C, ...)."""
    own = _blocks(tokens, block)
    previous = torch.cat([before.unsqueeze(1), own[:, :-1]], 1)
    return torch.cat([previous, own], 2).flatten(0, 1)


def _step(q: Tensor, after: AttentionState | WindowState) -> Tensor:
    """One token sees what the cache holds once it is in it."""
    return _attend(q.to(after.keys.dtype), after.keys, after.values, (after.position >= 0)[:, None]).to(q.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """softmax(q k / sqrt(K)) v: q (B, T, H, K), k (B, S, G, K), v (B, S, G, V), mask (B, T, S), true where seen."""
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask.unsqueeze(1),
        is_causal=causal,
        enable_gqa=q.size(2) != k.size(2),
    )
    return out.transpose(1, 2)


def _visible(queries: _Places, keys: _Places, window: int | None = None) -> Tensor:
    """(B, T, S) bool. A token of the padding sees padding, itself at least, so that no softmax is over nothing."""
    later, earlier = queries.time[:, :, None], keys.time[:, None]
    seen = (queries.document[:, :, None] == keys.document[:, None]) & (earlier <= later)
    return seen if window is None else seen & (earlier > later - window)


def _of_tokens(segment: Segment) -> _Places:
    document = torch.zeros_like(segment.position) if segment.document is None else segment.document
    return _Places(document, torch.arange(document.size(1), device=document.device).expand_as(document))


def _of_cache(state: AttentionState | WindowState) -> _Places:
    document = torch.zeros_like(state.position).masked_fill(state.position < 0, _EMPTY)
    return _Places(document, state.position - state.length[:, None])


def _joined(first: _Places, second: _Places) -> _Places:
    return _Places(*(torch.cat(pair, 1) for pair in zip(first, second, strict=True)))
