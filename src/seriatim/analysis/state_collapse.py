"""State collapse: what becomes of a recurrent state, and of the loss, beyond the length that a model was trained on.

A state that was never full in training need not have learned to forget. On longer sequences it goes on growing, and the
model meets states that it has not seen. Both are measured through the contract alone: a segment, a state, a segment.

Source: Chen et al., 2024, arXiv:2410.07145, section 3.

Dimensions: B batch, T time, P positions, H heads.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State, leaves

__all__ = ["LeafStatistics", "loss_by_position", "state_statistics"]

IGNORED = -100  # a target that is not asked for, as in torch's cross entropy


class LeafStatistics(NamedTuple):
    """A part of the state, each of its heads over the batch, at some positions.

    Attributes:
        positions: P counts of tokens read.
        mean, variance, largest: (P, H), of the numbers of a head; the largest is that of their absolute values.
        norm: (P, H), the root of the sum of their squares, a mean over the batch.
    """

    positions: tuple[int, ...]
    mean: Tensor
    variance: Tensor
    largest: Tensor
    norm: Tensor

    def growth(self, length: int) -> Tensor:
        """(H,): the norm at the last position over that at the position `length`, such as the training length."""
        if length not in self.positions:
            raise SeriatimError(f"length is {length}; the positions are {', '.join(map(str, self.positions))}")
        return self.norm[-1] / self.norm[self.positions.index(length)]


@torch.no_grad()
def state_statistics(
    mixer: Mixer, x: Tensor, positions: Sequence[int], *, reset: Tensor | None = None, chunk: int = 1024
) -> dict[str, LeafStatistics]:
    """Reads x and looks at the state on the way.

    Args:
        mixer: any whose state is of constant size, or a model of such.
        x: (B, T, D), or token ids (B, T) for a model.
        positions: after how many tokens to look, rising, from 1 to T.
        reset: (B, T) bool, a new document begins at this token.
        chunk: tokens read at once.

    Returns:
        For every floating leaf of the state, by its dotted name, its statistics. Its heads are its second dimension;
        a leaf of two dimensions, (B, D), counts as one head.

    Raises:
        SeriatimError: the mixer's state grows or it has none, or the positions are not as above.
    """
    check_size(chunk=chunk)
    _check_mixer(mixer)
    positions = tuple(positions)
    if not positions or any(not 0 < a < b for a, b in pairwise((*positions, x.size(1) + 1))):
        raise SeriatimError(f"positions is {list(positions)}; they must rise, from 1 to the {x.size(1)} tokens of x")
    found: dict[str, list[Tensor]] = {}
    state, begin = None, 0
    for end in positions:
        _, state = _read(mixer, x, begin, end, state, reset, chunk)
        begin = end
        for name, leaf in leaves(state):
            if leaf.is_floating_point():
                found.setdefault(name, []).append(_statistics(leaf))
    return {name: LeafStatistics(positions, *torch.stack(each, 1)) for name, each in found.items()}


@torch.no_grad()
def loss_by_position(
    model: Mixer, tokens: Tensor, targets: Tensor, *, reset: Tensor | None = None, chunk: int = 1024
) -> Tensor:
    """The mean loss, in nats, at every position: (T,) float64, NaN where nothing is asked in any row.

    Args:
        model: from token ids to logits, with a state of constant size.
        tokens: (B, T) int64.
        targets: (B, T) int64, -100 where nothing is asked.
        reset: (B, T) bool, a new document begins at this token.
        chunk: tokens read at once, the state carried.

    Raises:
        SeriatimError: the model's state grows or it has none, or the targets are of another shape.
    """
    check_size(chunk=chunk)
    _check_mixer(model)
    if targets.shape != tokens.shape:
        raise SeriatimError(f"targets has shape {tuple(targets.shape)}; tokens has {tuple(tokens.shape)}")
    losses, state = [], None
    for begin in range(0, tokens.size(1), chunk):
        end = min(begin + chunk, tokens.size(1))
        logits, state = _read(model, tokens, begin, end, state, reset, chunk)
        loss = F.cross_entropy(logits.mT.double(), targets[:, begin:end], ignore_index=IGNORED, reduction="none")
        losses.append(loss.sum(0) / (targets[:, begin:end] != IGNORED).sum(0))
    return torch.cat(losses)


def _read(
    mixer: Mixer, x: Tensor, begin: int, end: int, state: State | None, reset: Tensor | None, chunk: int
) -> tuple[Tensor, State]:
    """The last chunk's outputs and the state after the tokens from begin to end."""
    for first in range(begin, end, chunk):
        part = slice(first, min(first + chunk, end))
        y, state = mixer(x[:, part], state, reset=None if reset is None else reset[:, part])
    return y, state


def _statistics(leaf: Tensor) -> Tensor:
    """Mean, variance, largest and norm, (4, H)."""
    heads = leaf.double().flatten(2).transpose(0, 1) if leaf.dim() > 2 else leaf.double().flatten(1).unsqueeze(0)
    numbers, norms = heads.flatten(1), torch.linalg.vector_norm(heads, dim=2).mean(1)
    return torch.stack([numbers.mean(1), numbers.var(1, correction=0), numbers.abs().amax(1), norms])


def _check_mixer(mixer: Mixer) -> None:
    if not isinstance(mixer, Mixer) or not mixer.causal or not mixer.constant_state:
        raise SeriatimError(
            f"mixer is a {type(mixer).__name__}; it must be a seriatim mixer or model with a state of constant size"
        )
