"""Resets and lengths: several documents in one row, and rows of different lengths in one batch.

reset   (B, T) bool: a new document or episode begins at this token; what came before is forgotten.
lengths (B,) int: only the first lengths[b] tokens are real; the state stops there.
"""

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError

__all__ = ["check_lengths", "check_reset", "last", "mask", "positions", "real_tokens", "segments"]


def real_tokens(lengths: Tensor, time: int) -> Tensor:
    """(B, T) bool: true where a token is real and false in the padding."""
    return torch.arange(time, device=lengths.device) < lengths[:, None]


def mask(tokens: Tensor, keep: Tensor, fill: float = 0.0) -> Tensor:
    """`tokens` (B, T, ...) where `keep` (B, T) is true and `fill` elsewhere, whatever stood there (NaN included)."""
    return tokens.masked_fill(~keep.view(*keep.shape, *[1] * (tokens.dim() - 2)), fill)


def last(states: Tensor, before: Tensor, lengths: Tensor) -> Tensor:
    """Of `states` (B, T, ...) the one after the last real token; of rows without any the one `before` (B, ...)."""
    both = torch.cat([before.unsqueeze(1), states], 1)
    return both[torch.arange(both.size(0), device=both.device), lengths.long()]


def segments(reset: Tensor) -> Tensor:
    """(B, T) int: how many resets came up to and including each token; 0 still sees the carried state."""
    return reset.long().cumsum(1)


def positions(reset: Tensor | None, start: Tensor, time: int) -> Tensor:
    """(B, T) int: each token's index in its own document. start (B,) is the first token's where nothing is reset."""
    index = torch.arange(time, device=start.device)
    carried = start[:, None] + index
    if reset is None:
        return carried
    last_reset = torch.where(reset, index, -1).cummax(1).values
    return torch.where(last_reset < 0, carried, index - last_reset)


def check_reset(reset: Tensor, batch: int, time: int) -> None:
    """Raises unless reset is (batch, time) bool."""
    if reset.dtype != torch.bool:
        raise SeriatimError(f"reset has dtype {reset.dtype}; it must be torch.bool")
    if reset.shape != (batch, time):
        raise SeriatimError(f"reset has shape {tuple(reset.shape)}; it must be (batch, time) = {(batch, time)}")


def check_lengths(lengths: Tensor, batch: int, time: int) -> None:
    """Raises unless lengths is (batch,) of integers from 0 to time."""
    if lengths.dtype not in (torch.int64, torch.int32):
        raise SeriatimError(f"lengths has dtype {lengths.dtype}; it must be torch.int64 or torch.int32")
    if lengths.shape != (batch,):
        raise SeriatimError(f"lengths has shape {tuple(lengths.shape)}; it must be (batch,) = {(batch,)}")
    if torch.compiler.is_compiling() or lengths.device.type != "cpu" or batch == 0:
        return  # reading the values would break a graph or wait for a device
    if int(lengths.min()) < 0 or int(lengths.max()) > time:
        raise SeriatimError(
            f"lengths runs from {int(lengths.min())} to {int(lengths.max())}; it must stay within 0 and time = {time}"
        )
