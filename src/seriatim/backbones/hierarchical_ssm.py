"""HiSS: a stack that reads chunks, under a stack that reads what the first made of them."""

import sys
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.backbones.stack import Stack
from seriatim.core import ragged
from seriatim.core import state as states
from seriatim.core.build import Spec
from seriatim.core.errors import SeriatimError, check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State

__all__ = ["HierarchicalSSM", "HierarchicalState"]


class HierarchicalState(NamedTuple):
    """What is carried from segment to segment."""

    low: State
    high: State
    position: Tensor  # (B,) int64: of the next token in its document
    answer: Tensor  # (B, dim): of the last whole chunk


class HierarchicalSSM(Mixer):
    r"""Hierarchical state spaces: each chunk of k tokens is read afresh, and its last output goes to a slower model.

    .. math:: l_{ck}, \dots, l_{ck + k - 1} = \mathrm{low}(x_{ck}, \dots, x_{ck + k - 1}), \quad
              y = \mathrm{high}(l_{k - 1}, l_{2k - 1}, \dots)

    The slower model answers once a chunk, at the chunk's last token; the tokens after it repeat that answer until the
    next, and those of a document's first chunk say 0. Chunks are counted from where a document begins. What
    an answer is compared with in training is thus best asked at positions k - 1, 2k - 1, ... (targets elsewhere
    ignored), as in the paper.

    Args:
        dim: features in and out.
        low, high: specs of causal mixers, those of each stack.
        chunk: k, tokens of a chunk.
        norm, feed_forward, expansion, dropout: of both stacks (:class:`seriatim.backbones.stack.Stack`).

    Source: Bhirangi et al., 2024, arXiv:2402.10211, section 4.
    """

    def __init__(
        self,
        dim: int,
        low: Sequence[Spec] = ("s4d",),
        high: Sequence[Spec] = ("s4d",),
        chunk: int = 10,
        norm: str = "layer",
        feed_forward: str = "none",
        expansion: float = 4.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_size(dim=dim, chunk=chunk)
        self.dim, self.chunk, self.norm, self.feed_forward = dim, chunk, norm, feed_forward
        self.expansion, self.dropout = expansion, dropout
        self.low_stack, self.high_stack = (self._stack(name, layers) for name, layers in (("low", low), ("high", high)))
        self.low, self.high = self.low_stack.layers, self.high_stack.layers
        self.constant_state = self.low_stack.constant_state and self.high_stack.constant_state

    def _stack(self, name: str, layers: Sequence[Spec]) -> Stack:
        try:
            stack = Stack(self.dim, layers, self.norm, self.feed_forward, self.expansion, self.dropout)
        except SeriatimError as error:
            raise SeriatimError(f"{name}: {error}") from error
        if not stack.causal:
            raise SeriatimError(f"{name} is {layers!r}; its mixers must be causal")
        return stack

    def init_state(self, batch: int) -> HierarchicalState:
        answer = self.new_state(batch, self.dim)
        position = torch.zeros(batch, dtype=torch.int64, device=answer.device)
        return HierarchicalState(self.low_stack.init_state(batch), self.high_stack.init_state(batch), position, answer)

    def mix(
        self, x: Tensor, state: HierarchicalState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, HierarchicalState]:
        time, dim = x.shape[1:]
        if time == 0:
            return x, state
        place = ragged.positions(reset, state.position, time)
        ends = (place + 1) % self.chunk == 0
        if lengths is not None:
            ends = ends & ragged.real_tokens(lengths, time)
        features, low = self.low_stack(x, state.low, reset=place % self.chunk == 0, lengths=lengths)

        # The last tokens of the chunks side by side, as a sequence of its own.
        slots = (time + self.chunk - 1) // self.chunk
        seen = ends.long().cumsum(1)  # chunks that ended up to each token
        slot = torch.where(ends, seen - 1, slots)  # what is no end goes into a slot that is left out
        summaries = _at_slots(features, slot, slots)
        first = _at_slots((place < self.chunk) & ends, slot, slots)
        answers, high = self.high_stack(summaries, state.high, reset=first, lengths=seen[:, -1])

        answers = torch.cat([state.answer.unsqueeze(1).to(answers.dtype), answers], 1)
        y = answers.gather(1, seen.unsqueeze(2).expand(-1, -1, dim))
        y = ragged.mask(y, place + 1 >= self.chunk)
        last = (torch.full_like(state.position, time) if lengths is None else lengths) - 1
        at = last.clamp(min=0).unsqueeze(1)
        read = last >= 0
        position = torch.where(read, place.gather(1, at).squeeze(1) + 1, state.position)
        answer = torch.where(read[:, None], y.gather(1, at.unsqueeze(2).expand(-1, -1, dim)).squeeze(1), state.answer)
        return y, HierarchicalState(low, high, position, answer.to(state.answer.dtype))

    def step(self, x: Tensor, state: HierarchicalState) -> tuple[Tensor, HierarchicalState]:
        place, anew = state.position, state.position % self.chunk == 0
        low = states.where(anew, self.low_stack.init_state(len(x)), state.low)
        feature, low = self.low_stack.step(x, low)
        first, ends = (place < self.chunk)[:, None], (place + 1) % self.chunk == 0
        before = states.where(first.squeeze(1), self.high_stack.init_state(len(x)), state.high)
        answer, after = self.high_stack.step(feature, before)
        none = torch.zeros_like(state.answer)
        held = torch.where(first, none, state.answer)
        answer = torch.where(ends[:, None], answer.to(held.dtype), held)
        high = states.where(ends, after, state.high)
        return answer.to(x.dtype), HierarchicalState(low, high, place + 1, answer)


def _at_slots(x: Tensor, slot: Tensor, slots: int) -> Tensor:
    """x (B, T, ...) at the places slot (B, T) of a sequence of `slots`; what goes to `slots` itself is left out."""
    filled = x.new_zeros(x.size(0), slots + 1, *x.shape[2:])
    index = slot.view(*slot.shape, *[1] * (x.dim() - 2)).expand(x.shape)
    return filled.scatter(1, index, x)[:, :slots]


def reference(m: HierarchicalSSM, x: Tensor) -> Tensor:
    """Chunk by chunk, both stacks by their own reference."""
    stack = sys.modules[type(m.low_stack).__module__]
    rows = []
    for sequence in x:
        last = [
            stack.reference(m.low_stack, sequence[None, start : start + m.chunk])[0, -1]
            for start in range(0, len(sequence) - m.chunk + 1, m.chunk)
        ]
        answers = list(stack.reference(m.high_stack, torch.stack(last)[None])[0]) if last else []
        answers = [torch.zeros_like(sequence[0]), *answers]
        rows.append(torch.stack([answers[(t + 1) // m.chunk] for t in range(len(sequence))]))
    return torch.stack(rows)
