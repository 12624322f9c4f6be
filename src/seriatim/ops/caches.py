"""What attention remembers: a cache of all tokens, or a ring of the last few.

Dimensions: B batch, T time, S slots of the cache, W slots of the ring, G key-value heads, K key dim, V value dim.
"""

from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.core import ragged
from seriatim.core.mixer import state_dtype

__all__ = [
    "AttentionState",
    "Segment",
    "WindowState",
    "append",
    "init_attention_state",
    "init_window_state",
    "known_empty",
    "read_segment",
    "turn",
    "turn_one",
    "visible_slots",
]


class AttentionState(NamedTuple):
    """All tokens read, one slot each. A slot of the padding, or of a document that has ended, is empty."""

    keys: Tensor  # (B, S, G, K)
    values: Tensor  # (B, S, G, V)
    position: Tensor  # (B, S) int64: the token's index in its document; -1 in an empty slot
    length: Tensor  # (B,) int64: the index the next token will have


class WindowState(NamedTuple):
    """The last W tokens of the document; the one at position p in slot p mod W. Empty slots hold zeros."""

    keys: Tensor  # (B, W, G, K)
    values: Tensor  # (B, W, G, V)
    position: Tensor  # (B, W) int64: the token's index in its document; -1 in an empty slot
    length: Tensor  # (B,) int64: the index the next token will have


Cache = TypeVar("Cache", AttentionState, WindowState)


def init_attention_state(batch: int, kv_heads: int, key_dim: int, value_dim: int, like: Tensor) -> AttentionState:
    """A cache without slots, on the device of `like`, in its dtype or float32 where that is half precision."""
    return AttentionState(*_empty(batch, 0, kv_heads, key_dim, value_dim, like))


def init_window_state(
    batch: int, window: int, kv_heads: int, key_dim: int, value_dim: int, like: Tensor
) -> WindowState:
    """An empty ring, on the device of `like`, in its dtype or float32 where that is half precision."""
    return WindowState(*_empty(batch, window, kv_heads, key_dim, value_dim, like))


class Segment(NamedTuple):
    """Where the tokens of a call stand."""

    position: Tensor  # (B, T) int64, the index of each token in its document
    document: Tensor | None  # (B, T) int64, 0 goes on with the carried one, -1 is padding; None where all are 0
    next: Tensor  # (B,) int64, the index of the token after the last
    last: Tensor | None  # (B,) int64, the document that goes on after the segment; None where all are 0
    real: Tensor | int  # (B,) int64, how many tokens are real


def read_segment(time: int, start: Tensor, reset: Tensor | None, lengths: Tensor | None) -> Segment:
    """The positions and documents of `time` tokens whose first stands at start (B,) unless it is a reset."""
    real = None if lengths is None else ragged.real_tokens(lengths, time)
    if reset is not None and real is not None:
        reset = reset & real
    position = ragged.positions(None if reset is None else F.pad(reset, (0, 1)), start, time + 1)
    # Cloned: a view would keep the positions of all tokens in memory for as long as the state lives.
    following = position[:, -1].clone() if lengths is None else position.gather(1, lengths[:, None]).squeeze(1)
    if reset is None and real is None:
        return Segment(position[:, :-1], None, following, None, time if lengths is None else lengths)
    document = torch.zeros_like(position[:, :-1]) if reset is None else ragged.segments(reset)
    last = document[:, -1] if time else None
    if real is not None:
        document = document.masked_fill(~real, -1)
    return Segment(position[:, :-1], document, following, last, time if lengths is None else lengths)


def append(state: AttentionState, k: Tensor, v: Tensor, segment: Segment) -> AttentionState:
    """The cache with one more slot for every token."""
    old, new = state.position, segment.position
    if segment.document is not None and segment.last is not None:
        old = old.masked_fill(segment.last[:, None] > 0, -1)
        new = new.masked_fill(segment.document != segment.last[:, None], -1)
    return AttentionState(
        torch.cat([state.keys, k.to(state.keys.dtype)], 1),
        torch.cat([state.values, v.to(state.values.dtype)], 1),
        torch.cat([old, new], 1),
        segment.next,
    )


def turn(state: WindowState, k: Tensor, v: Tensor, segment: Segment) -> WindowState:
    """The ring after the segment: in each slot the last token that belongs there."""
    window = state.position.size(1)
    last = segment.next[:, None] - 1
    behind = (last - torch.arange(window, device=last.device)) % window  # tokens between the slot's and the last one
    real = segment.real if isinstance(segment.real, int) else segment.real[:, None]
    index = real - 1 - behind
    position = last - behind
    fresh = (index >= 0) & (position >= 0)
    ended = None if segment.last is None else segment.last[:, None] > 0

    rows = index.clamp(min=0) + k.size(1) * torch.arange(k.size(0), device=last.device)[:, None]

    def choose(old: Tensor, new: Tensor) -> Tensor:
        # Whole tokens are copied: a gather of single numbers takes ten times as long.
        chosen = new.to(old.dtype).flatten(0, 1).index_select(0, rows.flatten()).view(old.shape)
        kept = old if ended is None else old.masked_fill(ended[..., None, None], 0)
        return torch.where(fresh[..., None, None], chosen, kept)

    kept = state.position if ended is None else state.position.masked_fill(ended, -1)
    position = torch.where(fresh, position, kept)
    return WindowState(choose(state.keys, k), choose(state.values, v), position, segment.next)


def turn_one(state: WindowState, k: Tensor, v: Tensor, reset: Tensor | None) -> WindowState:
    """The ring after one token in every row, k (B, 1, G, K): the same as `turn`, in fewer calls. reset (B, 1) bool."""
    keys, values, position, length = state
    if reset is not None:
        keys, values = (leaf.masked_fill(reset[..., None, None], 0) for leaf in (keys, values))
        position, length = position.masked_fill(reset, -1), length.masked_fill(reset[:, 0], 0)
    window = position.size(1)
    here = torch.arange(window, device=length.device) == (length % window)[:, None]
    wide = here[..., None, None]
    return WindowState(
        torch.where(wide, k.to(keys.dtype), keys),
        torch.where(wide, v.to(values.dtype), values),
        torch.where(here, length[:, None], position),
        length + 1,
    )


def known_empty(state: AttentionState | WindowState) -> bool:
    """Whether no slot is in use, where that can be read at no cost: a fresh state is most of training."""
    if torch.compiler.is_compiling() or state.position.device.type != "cpu":
        return state.position.size(1) == 0
    return not bool((state.position >= 0).any())


def visible_slots(state: AttentionState | WindowState, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The keys and values carried, and before which of the next tokens each slot is seen, (B, slots) int64."""
    if known_empty(state):
        return state.keys[:, :0], state.values[:, :0], state.position[:, :0]
    behind = state.position - state.length[:, None]
    until = torch.full_like(behind, torch.iinfo(torch.int64).max) if window is None else behind + window
    return state.keys, state.values, until.masked_fill(state.position < 0, 0)


def _empty(
    batch: int, slots: int, kv_heads: int, key_dim: int, value_dim: int, like: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = state_dtype(like.dtype)
    return (
        like.new_zeros(batch, slots, kv_heads, key_dim, dtype=dtype),
        like.new_zeros(batch, slots, kv_heads, value_dim, dtype=dtype),
        like.new_full((batch, slots), -1, dtype=torch.int64),
        like.new_zeros(batch, dtype=torch.int64),
    )
