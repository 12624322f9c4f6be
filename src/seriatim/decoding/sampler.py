"""How the next token is chosen, as one settings object. Importing it does not import torch."""

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from seriatim.core.errors import SeriatimError, check_positive

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Sampler"]


@dataclass(frozen=True)
class Sampler:
    """Chooses a token for each row: penalty, temperature, top-k, top-p and min-p in this order, then a draw.

    Args:
        temperature: above 1 more varied, below 1 more certain; 0 takes the most probable token.
        top_k: only the k most probable tokens; 0 is all of them.
        top_p: only the smallest set of tokens of at least this probability together; 1 is all of them.
        min_p: only tokens at least this times as probable as the most probable; 0 is all of them.
        repetition_penalty: above 1 tokens that already occurred become less probable; 1 is none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise SeriatimError(f"temperature is {self.temperature}; it must be 0 or above")
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise SeriatimError(f"top_k is {self.top_k!r}; it must be an integer, 0 (all tokens) or above")
        if not 0 < self.top_p <= 1:
            raise SeriatimError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise SeriatimError(f"min_p is {self.min_p}; it must be from 0 to 1")
        check_positive(repetition_penalty=self.repetition_penalty)

    def __call__(
        self, logits: "Tensor", seen: "Tensor | None" = None, generator: "torch.Generator | None" = None
    ) -> "Tensor":
        """Token ids (B,) from logits (B, vocab).

        Args:
            logits: (B, vocab) floating.
            seen: (B, vocab) bool, the tokens that already occurred; None is none.
            generator: where the randomness comes from; unused at temperature 0.

        Raises:
            SeriatimError: a row has no finite largest logit.
        """
        from seriatim.decoding import sampling

        logits = logits.float() if logits.element_size() < 4 else logits
        _check_finite(logits)
        if seen is not None and self.repetition_penalty != 1:
            logits = sampling.repetition_penalty(logits, seen, self.repetition_penalty)
        if self.temperature < 1e-30:  # below it float32 logits divided by it would overflow
            return sampling.greedy(logits)
        if self.temperature != 1:
            logits = sampling.temperature(logits, self.temperature)
        if self.top_k:
            logits = sampling.top_k(logits, self.top_k)
        if self.top_p < 1:
            logits = sampling.top_p(logits, self.top_p)
        if self.min_p > 0:
            logits = sampling.min_p(logits, self.min_p)
        return sampling.draw(logits, generator).to(logits.device)


def _check_finite(logits: "Tensor") -> None:
    for row, largest in enumerate(logits.amax(-1).tolist()):
        if not isfinite(largest):
            raise SeriatimError(
                f"logits of row {row} are not finite; the model's weights or state hold NaN or infinity"
            )
