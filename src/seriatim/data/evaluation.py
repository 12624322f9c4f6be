"""Batches for evaluation: every token once, in order, whatever the batch size."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from seriatim.core.errors import SeriatimError, check_positive
from seriatim.data.batches import IGNORED, Batch, new_batch
from seriatim.data.corpus import Document
from seriatim.data.stream import Order, TokenStream
from seriatim.data.tokenizer import Tokenizer

__all__ = ["EvaluationBatches"]


class EvaluationBatches:
    """Predicts every token of every document exactly once; the state carries from each batch to the next.

    Each row reads whole documents one after another. A document longer than a row's share of the text is cut, so that
    no row works while the others wait; the part after a cut begins afresh.

    Args:
        documents: the texts, a split of a corpus.
        tokenizer: turns them into ids.
        batch: rows at most.
        window: tokens of a row in a batch.
        tokens: stop after so many: a fixed choice of documents (by the hash of the name), the last one cut. 0: all.
        overlap: tokens that each window repeats from the one before, as context with no target, for models whose state
            is not carried because it would grow.

    Attributes:
        tokens: targets in all, each document's ending boundary among them.
        bytes: bytes of text that they stand for.
        text: those bytes.

    Raises:
        SeriatimError: the documents are empty, or an argument is out of range.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: Tokenizer,
        batch: int,
        window: int,
        tokens: int = 0,
        overlap: int = 0,
    ):
        check_positive(batch=batch, window=window)
        if not 0 <= overlap < window:
            raise SeriatimError(f"overlap is {overlap}; it must be at least 0 and less than window, which is {window}")
        if tokens < 0:
            raise SeriatimError(f"tokens is {tokens}; it must be 0 (all) or more")
        if tokens:
            documents = sorted(
                documents, key=lambda document: hashlib.sha256(document.name.encode(errors="surrogateescape")).digest()
            )
        self.window, self.overlap, self._boundary = window, overlap, tokenizer.boundary
        stream = TokenStream(documents, tokenizer)
        starts, lengths = _limited(stream, tokens)
        self.tokens = int(lengths.sum())
        self.text = _text(documents, stream, lengths, tokenizer)
        self.bytes = len(self.text)
        self._rows = _dealt(stream, *_cut(starts, lengths, -(-self.tokens // batch)), batch)

    def __iter__(self) -> Iterator[Batch]:
        longest, new = max(map(len, self._rows)), self.window - self.overlap
        for index in range(1 + max(0, -(-(longest - self.window) // new))):
            yield self._batch(index * new)

    def _batch(self, first: int) -> Batch:
        tokens, targets, reset = new_batch(len(self._rows), self.window)
        tokens[:] = self._boundary
        for row, order in enumerate(self._rows):
            if first < len(order):
                order.read(first, tokens[row], targets[row], reset[row])
        if first > 0:
            targets[:, : self.overlap] = IGNORED
        return Batch(*map(torch.from_numpy, (tokens, targets, reset)))


def _limited(stream: TokenStream, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """The starts and lengths of the first documents, as many as make `tokens`."""
    before = stream.starts
    if not tokens:
        return stream.starts, stream.lengths
    lengths = np.minimum(stream.lengths, tokens - before)[before < tokens]
    return stream.starts[: len(lengths)], lengths


def _text(documents: Sequence[Document], stream: TokenStream, lengths: np.ndarray, tokenizer: Tokenizer) -> bytes:
    """What the targets say: whole documents as they are, a cut one decoded."""
    texts = [document.data for document in documents[: len(lengths)]]
    last = len(lengths) - 1
    if lengths[last] < stream.lengths[last]:
        begin = int(stream.starts[last]) + 1
        texts[last] = tokenizer.decode(stream.tokens[begin : begin + int(lengths[last])])
    return b"".join(texts)


def _cut(starts: np.ndarray, lengths: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of at most `longest` tokens."""
    pieces = -(-lengths // longest)
    index = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    whole = np.repeat(lengths, pieces)
    return np.repeat(starts, pieces) + index * longest, np.minimum(longest, whole - index * longest)


def _dealt(stream: TokenStream, starts: np.ndarray, lengths: np.ndarray, batch: int) -> list[Order]:
    """Deals the pieces to the rows, the longest first and each to the row that has least."""
    rows: list[list[int]] = [[] for _ in range(min(batch, len(starts)))]
    filled = np.zeros(len(rows), np.int64)
    for piece in np.argsort(-lengths, kind="stable"):
        row = int(filled.argmin())
        rows[row].append(int(piece))
        filled[row] += lengths[piece]
    return [Order(stream, starts[row], lengths[row]) for row in map(np.array, rows)]
