"""Batches for training: endless, shuffled by a seed, resumed exactly from one number.

`PackedBatches` cuts the shuffled documents into windows that stand alone; `ContiguousBatches` reads them in order, so
that the state carries from one batch to the next (truncated back-propagation). In both, one row may hold several
documents, each beginning with the boundary token where reset is true.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_positive
from seriatim.data.corpus import Document
from seriatim.data.stream import Order, TokenStream
from seriatim.data.tokenizer import Tokenizer

__all__ = ["IGNORED", "Batch", "Batches", "ContiguousBatches", "PackedBatches", "new_batch"]

IGNORED = -100  # a target that is not to be predicted, as in torch's cross entropy


class Batch(NamedTuple):
    """What a model reads and what it is to say.

    tokens: (B, T) int64.
    targets: (B, T) int64, the next token, -100 where nothing is to be predicted.
    reset: (B, T) bool, a document begins here; None: nowhere.
    """

    tokens: Tensor
    targets: Tensor
    reset: Tensor | None


class Batches(ABC):
    """An endless iterator of batches. Its position is the number of batches read, so a resume costs nothing.

    Args:
        documents: the texts.
        tokenizer: turns them into ids.
        batch: rows.
        window: tokens of a row.
        seed: of the order; every epoch has its own.

    Attributes:
        carries: each batch goes on where the one before ended, so the state should be carried.
        batches_per_epoch: batches after which every token has been read once, but for a remainder shorter than a batch.

    Raises:
        SeriatimError: the text is too short.
    """

    carries: ClassVar[bool]

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer, batch: int, window: int, seed: int = 0):
        check_positive(batch=batch, window=window)
        self.stream = TokenStream(documents, tokenizer)
        self.batch, self.window, self.seed = batch, window, seed
        self.batches_read = 0
        self._epoch: tuple[int, Order] | None = None
        self._fingerprint = self.stream.fingerprint(type(self).__name__, batch, window, seed)
        if len(self.stream) < window:
            raise SeriatimError(
                f"the text has {len(self.stream)} tokens, fewer than one window; window is {window}, take a shorter one"
            )

    @abstractmethod
    def _read(self, index: int, tokens: np.ndarray, targets: np.ndarray, reset: np.ndarray) -> None:
        """Fills the arrays (batch, window) with the batch of that index."""

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Batch:
        arrays = new_batch(self.batch, self.window)
        self._read(self.batches_read, *arrays)
        self.batches_read += 1
        return Batch(*map(torch.from_numpy, arrays))

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as plain data."""
        return {"batches_read": self.batches_read, "fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a position. Raises SeriatimError where the text, the tokenizer or a setting is not what it was."""
        if state.get("fingerprint") != self._fingerprint:
            raise SeriatimError("the data is not what the run was started with, so it cannot be resumed")
        self.batches_read = state["batches_read"]

    def _order(self, epoch: int) -> Order:
        """The documents shuffled for an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.stream.starts))
            self._epoch = epoch, Order(self.stream, self.stream.starts[shuffled], self.stream.lengths[shuffled])
        return self._epoch[1]


class PackedBatches(Batches):
    """Windows that stand alone, in random order: every row begins afresh (reset is true at its first token)."""

    carries = False

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer, batch: int, window: int, seed: int = 0):
        super().__init__(documents, tokenizer, batch, window, seed)
        self._rows = len(self.stream) // window
        self._shuffled: tuple[int, np.ndarray] | None = None
        self.batches_per_epoch = max(1, self._rows // batch)

    def _read(self, index: int, tokens: np.ndarray, targets: np.ndarray, reset: np.ndarray) -> None:
        for row in range(self.batch):
            epoch, place = divmod(index * self.batch + row, self._rows)
            first = int(self._places(epoch)[place]) * self.window
            self._order(epoch).read(first, tokens[row], targets[row], reset[row])
        reset[:, 0] = True

    def _places(self, epoch: int) -> np.ndarray:
        if self._shuffled is None or self._shuffled[0] != epoch:
            self._shuffled = epoch, np.random.default_rng([self.seed, epoch, 1]).permutation(self._rows)
        return self._shuffled[1]


class ContiguousBatches(Batches):
    """Each row reads its own share of the shuffled documents in order, and goes on in the next batch where it stopped.

    An epoch's first batch begins afresh: each row jumps to its share of the new order (reset is true at its first
    token).
    """

    carries = True

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer, batch: int, window: int, seed: int = 0):
        super().__init__(documents, tokenizer, batch, window, seed)
        self._share = len(self.stream) // batch
        self.batches_per_epoch = self._share // window
        if self.batches_per_epoch == 0:
            raise SeriatimError(
                f"the text has {len(self.stream)} tokens, fewer than one window in every row; "
                f"batch is {batch} and window is {window}, take a smaller one"
            )

    def _read(self, index: int, tokens: np.ndarray, targets: np.ndarray, reset: np.ndarray) -> None:
        epoch, part = divmod(index, self.batches_per_epoch)
        order = self._order(epoch)
        for row in range(self.batch):
            order.read(row * self._share + part * self.window, tokens[row], targets[row], reset[row])
        if part == 0:
            reset[:, 0] = True


def new_batch(batch: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Room for the tokens (zeros), the targets (nothing to predict) and the resets (none) of a batch."""
    shape = batch, window
    return np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64), np.zeros(shape, np.bool_)
