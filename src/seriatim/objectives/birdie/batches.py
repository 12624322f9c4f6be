"""Batches of a mixture of objectives whose weights follow the training."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.objectives.birdie.curriculum import Curriculum
from seriatim.objectives.birdie.mixture import DenoisingBatch, make_batch
from seriatim.objectives.birdie.special import SpecialTokens

__all__ = ["DenoisingBatches", "Windows"]


class Windows(Protocol):
    """An endless source of text (`seriatim.data.batches`) whose position is plain data."""

    carries: ClassVar[bool]

    def __next__(self) -> Any: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class DenoisingBatches:
    """An endless iterator of questions and answers (`make_batch`), for the training loop.

    Before a batch that the curriculum says is due, the objectives are measured and their weights chosen anew. The
    reward model and what it learned are in the state, so that a run which is resumed goes on as if never stopped.

    Args:
        windows: batches of text that stand alone; their `tokens` (B, T) are used.
        curriculum: chooses the weights of its objectives. Its steps are batches here.
        special: the tokens beside the text's.
        measure: the loss of each objective by itself, (objectives,), of the model as it is now (`objective_losses`).
        seed: of all draws of objectives, spans and orders.

    Raises:
        SeriatimError: windows go on where the ones before ended.
    """

    carries: ClassVar[bool] = False

    def __init__(
        self,
        windows: Windows,
        curriculum: Curriculum,
        special: SpecialTokens,
        measure: Callable[[], Tensor],
        seed: int = 0,
    ):
        if windows.carries:
            raise SeriatimError(f"windows is {type(windows).__name__}; its windows must stand alone, as PackedBatches'")
        self.windows, self.curriculum, self.special, self.measure = windows, curriculum, special, measure
        self.batches_read = 0
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> "DenoisingBatches":
        return self

    def __next__(self) -> DenoisingBatch:
        curriculum = self.curriculum
        if curriculum.is_due(self.batches_read):
            curriculum.observe(self.batches_read, self.measure())
        self.batches_read += 1
        tokens = next(self.windows).tokens
        return make_batch(tokens, curriculum.objectives, self.special, curriculum.weights, self._generator)

    def state_dict(self) -> dict[str, Any]:
        """The position, as plain data and tensors by name."""
        curriculum = {f"curriculum.{name}": tensor for name, tensor in self.curriculum.state_dict().items()}
        return {
            "batches_read": self.batches_read,
            "objectives": [repr(objective) for objective in self.curriculum.objectives],
            "windows": self.windows.state_dict(),
            "generator": self._generator.get_state(),
            **curriculum,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes to a position. Raises SeriatimError where the text or the objectives are not what they were."""
        if state.get("objectives") != self.state_dict()["objectives"]:
            raise SeriatimError("the objectives are not what the run was started with, so it cannot be resumed")
        self.windows.load_state_dict(state["windows"])
        prefix = "curriculum."
        self.curriculum.load_state_dict(
            {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        )
        self._generator.set_state(state["generator"])
        self.batches_read = state["batches_read"]
