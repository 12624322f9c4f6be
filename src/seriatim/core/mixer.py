"""The contract: (state, segment) -> (outputs, state)."""

import functools
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.errors import SeriatimError
from seriatim.core.state import State, check_state
from seriatim.core.stepping import Step, with_engine

__all__ = ["Mixer", "state_dtype"]


class Mixer(nn.Module, ABC):
    """Maps (B, T, dim) to (B, T, dim) and carries a state from one segment of the sequence to the next.

    A method writes `init_state` and `mix`. What is the same for all is done here: the checks, the meaning of `reset`
    and `lengths` on the input, the step, the rewind. The constructor keeps each of its arguments under the argument's
    name, so that `seriatim.core.build.spec` can describe any mixer as plain data.

    Attributes:
        causal: an output depends on no later input. A mixer that is not causal carries the state `()` and cannot step.
        constant_state: the state's size does not depend on how much was read. A cache that grows declares False.
        reads_tokens: the input is token ids (B, T) int, not features: models.
        input_dim: features of the input where those are not `dim`: models.
    """

    causal: bool = True
    constant_state: bool = True
    reads_tokens: bool = False
    input_dim: int | None = None
    dim: int

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "step" in vars(cls):
            cls.step = with_engine(_checked(cls.step))  # type: ignore[method-assign]

    @abstractmethod
    def init_state(self, batch: int) -> State:
        """The state before anything was read, for `batch` rows."""

    @abstractmethod
    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        """The method. Padded tokens of x are 0 and resets in the padding are gone; the state must stop at lengths."""

    def forward(
        self, x: Tensor, state: State | None = None, *, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads a segment and goes on from `state`.

        Args:
            x: (B, T, dim); for a model (B, T) token ids. T may be 0.
            state: what an earlier call returned; None is `init_state(B)`. It is not changed.
            reset: (B, T) bool, a new document or episode begins at this token.
            lengths: (B,) int, only the first lengths[b] tokens are real; what the padding holds does not matter.

        Returns:
            Outputs, one for each token (those of padded tokens are finite and mean nothing), and the state after the
            segment.

        Raises:
            SeriatimError: (a ValueError) an argument has another shape or dtype than the above.
        """
        self._check(x, state, reset, lengths)
        if lengths is not None:
            lengths = lengths.to(x.device)
            real = ragged.real_tokens(lengths, x.size(1))
            x = ragged.mask(x, real, 0)
            reset = None if reset is None else reset.to(x.device) & real
        state = self.init_state(x.size(0)) if state is None else state
        return self.mix(x, state, reset, lengths)

    @with_engine
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads one token, x (B, dim), or (B,) ids for a model. Equal to `forward` on a segment of length 1."""
        if not self.causal:
            raise SeriatimError(f"{type(self).__name__} is not causal: it reads whole segments and cannot step")
        y, state = self.forward(x.unsqueeze(1), state)
        return y.squeeze(1), state

    def rewind(self, before: State, x: Tensor, keep: Tensor) -> State:
        """The state after only the first keep[b] tokens of x, read from the state `before`. keep (B,) int."""
        return self.forward(x, before, lengths=keep)[1]

    def new_state(self, batch: int, *shape: int, fill: float = 0.0) -> Tensor:
        """A (batch, *shape) leaf on the parameters' device, in the state's dtype."""
        parameter = next(self.parameters())
        return torch.full((batch, *shape), fill, device=parameter.device, dtype=state_dtype(parameter.dtype))

    def _check(self, x: Tensor, state: State | None, reset: Tensor | None, lengths: Tensor | None) -> None:
        name = type(self).__name__
        if self.reads_tokens:
            if x.dim() != 2 or x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
                raise SeriatimError(
                    f"{name}: x has shape {tuple(x.shape)} and dtype {x.dtype}; it must be (batch, time) integers"
                )
        elif x.dim() != 3 or x.size(2) != (self.input_dim or self.dim) or not x.is_floating_point():
            raise SeriatimError(
                f"{name}: x has shape {tuple(x.shape)} and dtype {x.dtype}; "
                f"it must be (batch, time, {self.input_dim or self.dim}) floating"
            )
        batch, time = x.size(0), x.size(1)
        if reset is not None:
            ragged.check_reset(reset, batch, time)
        if lengths is not None:
            ragged.check_lengths(lengths, batch, time)
        if state is not None:
            check_state(name, state, self.init_state(0), batch)


def _checked(step: Step) -> Step:
    """A step of a class's own, which looks first whose state it is given."""

    @functools.wraps(step)
    def checked(self: Any, x: Any, state: Any) -> tuple[Any, Any]:
        check_state(type(self).__name__, state, self.init_state(0), len(x))
        return step(self, x, state)

    return checked


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of states beside parameters or inputs of `dtype`: the same, or float32 where that is half precision."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
