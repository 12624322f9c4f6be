"""Linear time-invariant systems by chunks of time, as products of matrices.

In a chunk of L tokens an answer is a convolution of the chunk's inputs (a Toeplitz matrix of the kernel C A^i B), and
what the state at the chunk's start, h, still says: C A^{i+1} h. A chunk adds the sum of A^{L-1-j} B u_j to the state,
which fades by A^L. A state at any token follows from that of its chunk's start in the same way.

Dimensions: B batch, T time, G systems, N state size, M answers, L tokens of a chunk, n chunks.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.ops.diagonal_scan import diagonal_scan
from seriatim.ops.short_conv import short_conv

__all__ = ["chunked"]

CHUNK = 64  # tokens at most: a power of two


class _Tables(NamedTuple):
    """What depends on the system only."""

    kernel: Tensor  # (G, M, L) real: C A^i B
    write: Tensor  # (G, N, L): A^{L-1-j} B
    read: Tensor  # (G, M, L, N): C A^{i+1}
    powers: list[Tensor]  # A, A^2, A^4, ..., A^L


class _Resets(NamedTuple):
    """Where documents begin inside the chunks, (B, n, L) or None where nothing is reset."""

    begins: Tensor  # bool
    document: Tensor  # int: how many began since the chunk did, 0 is the one that came from before


def chunked(
    u: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    state: Tensor | None = None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results as in :func:`seriatim.ops.invariant_scan.reference`."""
    batch, time = u.shape[:2]
    state = A.new_zeros(batch, *B.shape) if state is None else state
    if time == 0 or u.numel() == 0 or B.numel() == 0:
        return u.new_zeros(batch, time, *C.shape[:2]), state
    if time == 1:
        return _step(u.squeeze(1), A, B, C, state, reset, lengths)
    size = min(CHUNK, 1 << (time - 1).bit_length())
    tables, padding = _tables(A, B, C, size), -time % size
    inputs = F.pad(u, (0, 0, 0, padding)).unflatten(1, (-1, size))  # (B, n, L, G)
    resets = None if reset is None else _resets(F.pad(reset, (0, padding)).unflatten(1, (-1, size)))
    written = _write(inputs, tables, resets)
    starts = _starts(written, tables.powers[-1], state, resets)
    y = _inside(inputs, tables.kernel, resets) + _from_before(starts, tables.read, resets)
    return y.flatten(1, 2)[:, :time], _at_end(inputs, starts, tables, resets, time, lengths)


def _step(
    u: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One token, as generation reads them."""
    before = state if reset is None else state.masked_fill(reset.unsqueeze(2), 0.0)
    after = _apply(A, before) + B * u.unsqueeze(2)
    y = _real((C @ after.unsqueeze(3)).squeeze(3))
    return y.unsqueeze(1), after if lengths is None else torch.where((lengths > 0)[:, None, None], after, state)


def _tables(A: Tensor, B: Tensor, C: Tensor, size: int) -> _Tables:
    """Everything by doubling: what holds the powers below k, times A^k, holds those below 2 k."""
    powers = [A]
    write, read = B.unsqueeze(2), _times(C, A).unsqueeze(2)
    for _ in range(size.bit_length() - 1):
        power = powers[-1]
        write = torch.cat([write, power.unsqueeze(2) * write if A.dim() == 2 else power @ write], 2)
        read = torch.cat([read, _times(read.flatten(1, 2), power).unflatten(1, read.shape[1:3])], 2)
        powers.append(power * power if A.dim() == 2 else power @ power)
    return _Tables(_real(C @ write), write.flip(2), read, powers)


def _write(inputs: Tensor, tables: _Tables, resets: _Resets | None) -> Tensor:
    """What each chunk adds to the state, (B, n, G, N)."""
    if resets is not None:
        inputs = inputs.masked_fill((resets.document != resets.document[..., -1:]).unsqueeze(3), 0.0)
    return _written(inputs, tables.write)


def _written(inputs: Tensor, write: Tensor) -> Tensor:
    """The sum of A^{L-1-j} B u_j, (..., G, N), of inputs (..., L, G)."""
    columns = inputs.movedim(-1, 0).flatten(1, -2).mT  # (G, L, ...)
    added = torch.complex(write.real @ columns, write.imag @ columns) if write.is_complex() else write @ columns
    return added.permute(2, 0, 1).unflatten(0, inputs.shape[:-2])


def _starts(written: Tensor, fade: Tensor, state: Tensor, resets: _Resets | None) -> Tensor:
    """The state at each chunk's start, (B, n, G, N), from what the chunks add."""
    cut = None if resets is None else resets.begins.any(2)
    if fade.dim() == 2:
        ends, _ = diagonal_scan(fade, written[:, :-1], state=state, reset=None if cut is None else cut[:, :-1])
        return torch.cat([state.unsqueeze(1), ends], 1)
    starts = [state]
    for chunk in range(written.size(1) - 1):
        before = starts[-1] if cut is None else starts[-1].masked_fill(cut[:, chunk, None, None], 0.0)
        starts.append(_apply(fade, before) + written[:, chunk])
    return torch.stack(starts, 1)


def _inside(inputs: Tensor, kernel: Tensor, resets: _Resets | None) -> Tensor:
    """What a chunk's own inputs say, (B, n, L, G, M)."""
    batch, chunks, size, _ = inputs.shape
    systems, answers, _ = kernel.shape
    if resets is not None:  # a convolution that begins anew at every chunk and document
        begins = resets.begins.clone()
        begins[:, :, 0] = True
        repeated = inputs.flatten(1, 2).repeat_interleave(answers, 2)
        y, _ = short_conv(repeated, kernel.flip(2).flatten(0, 1), reset=begins.flatten(1, 2))
        return y.view(batch, chunks, size, systems, answers)
    toeplitz = F.pad(kernel, (size - 1, 0)).unfold(2, size, 1).flip(3).flatten(1, 2)  # (G, M L, L)
    y = toeplitz @ inputs.permute(3, 2, 0, 1).flatten(2)
    return y.view(systems, answers, size, batch, chunks).permute(3, 4, 2, 0, 1)


def _from_before(starts: Tensor, read: Tensor, resets: _Resets | None) -> Tensor:
    """What the states at the chunks' starts still say, (B, n, L, G, M)."""
    batch, chunks, systems, _ = starts.shape
    answers, size = read.shape[1:3]
    read, h = read.flatten(1, 2), starts.permute(2, 3, 0, 1).flatten(2)  # (G, M L, N), (G, N, B n)
    y = torch.cat([read.real, -read.imag], 2) @ torch.cat([h.real, h.imag], 1) if read.is_complex() else read @ h
    y = y.view(systems, answers, size, batch, chunks).permute(3, 4, 2, 0, 1)
    return y if resets is None else y.masked_fill((resets.document > 0)[..., None, None], 0.0)


def _at_end(
    inputs: Tensor, starts: Tensor, tables: _Tables, resets: _Resets | None, time: int, lengths: Tensor | None
) -> Tensor:
    """The state after the last real token, (B, G, N), from the start of that token's chunk."""
    batch, _, size, systems = inputs.shape
    if lengths is None:
        lengths = torch.full((batch,), time, device=inputs.device)
    chunk = (lengths - 1).clamp(min=0).div(size, rounding_mode="floor")
    count = lengths - chunk * size  # 0 to L tokens of it are read
    rows = torch.arange(batch, device=inputs.device)
    h, inputs = starts[rows, chunk], inputs[rows, chunk]
    place = torch.arange(size, device=inputs.device) - (size - count).unsqueeze(1)  # so that the last one read is last
    used = place >= 0
    if resets is not None:
        document = resets.document[rows, chunk]
        last = document.gather(1, (count - 1).clamp(min=0).unsqueeze(1))
        used = used & (document.gather(1, place.clamp(min=0)) == last)
        h = h.masked_fill(((last > 0) & (count > 0).unsqueeze(1)).unsqueeze(2), 0.0)
    moved = inputs.gather(1, place.clamp(min=0).unsqueeze(2).expand(-1, -1, systems)).masked_fill(~used.unsqueeze(2), 0)
    for bit, power in enumerate(tables.powers):
        h = torch.where(count.bitwise_right_shift(bit).bitwise_and(1).bool()[:, None, None], _apply(power, h), h)
    return h + _written(moved, tables.write)


def _resets(begins: Tensor) -> _Resets:
    return _Resets(begins, begins.long().cumsum(2))


def _apply(A: Tensor, h: Tensor) -> Tensor:
    """A h, for states (B, G, N)."""
    return A * h if A.dim() == 2 else (h.transpose(0, 1) @ A.mT).transpose(0, 1)


def _times(rows: Tensor, A: Tensor) -> Tensor:
    """rows (G, ..., N) A."""
    return rows * A.unsqueeze(1) if A.dim() == 2 else rows @ A


def _real(z: Tensor) -> Tensor:
    return z.real if z.is_complex() else z
