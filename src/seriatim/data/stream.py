"""The token ids of many documents in one array, and orders in which to read them."""

import hashlib
from collections.abc import Sequence

import numpy as np

from seriatim.core.errors import SeriatimError
from seriatim.data.corpus import Document
from seriatim.data.tokenizer import Tokenizer

__all__ = ["Order", "TokenStream"]


class TokenStream:
    """Documents end to end: boundary, ids, boundary, ids, ..., boundary. The last one only ends the last document.

    Attributes:
        tokens: (length + 1,) of the smallest unsigned dtype that holds the vocabulary.
        starts: (documents,) int64, where each document's boundary stands.
        lengths: (documents,) int64, each document's tokens with the boundary that begins it.

    Raises:
        SeriatimError: there is nothing in the documents.
    """

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer):
        dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
        boundary = np.array([tokenizer.boundary], dtype)
        pieces = [boundary]
        for document in documents:
            pieces += [tokenizer.compact(document.data), boundary]
        self.lengths = np.array([len(piece) + 1 for piece in pieces[1::2]], np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = np.concatenate(pieces, dtype=dtype)
        if len(self) == len(documents):
            raise SeriatimError("the text is empty: this part of the data has no token in it")

    def __len__(self) -> int:
        """Tokens that have a target: all but the last boundary."""
        return len(self.tokens) - 1

    def fingerprint(self, *settings: object) -> str:
        """Changes when the text, the tokenizer, or one of `settings` does."""
        digest = hashlib.sha256(self.tokens.data)
        digest.update(repr(settings).encode())
        return digest.hexdigest()[:32]


class Order:
    """Pieces of a stream put into an order and read as one sequence. A piece is a document or a part of one.

    Args:
        stream: the tokens.
        starts: (pieces,) int64, where each piece begins in the stream.
        lengths: (pieces,) int64, how many tokens it has; at least 1 each.
    """

    def __init__(self, stream: TokenStream, starts: np.ndarray, lengths: np.ndarray):
        self._stream, self._starts, self._lengths = stream, starts, lengths
        self._places = np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        return int(self._lengths.sum())

    def read(self, first: int, tokens: np.ndarray, targets: np.ndarray, reset: np.ndarray) -> int:
        """Fills the arrays (count,) with the tokens from the place `first` on, the token that follows each in its
        document (the boundary after the last), and true where a piece begins. Returns how many there were: fewer only
        at the end.
        """
        filled, piece = 0, int(np.searchsorted(self._places, first, "right")) - 1
        while filled < len(tokens) and piece < len(self._starts):
            offset = first + filled - int(self._places[piece])
            begin = int(self._starts[piece]) + offset
            count = min(len(tokens) - filled, int(self._lengths[piece]) - offset)
            tokens[filled : filled + count] = self._stream.tokens[begin : begin + count]
            targets[filled : filled + count] = self._stream.tokens[begin + 1 : begin + 1 + count]
            reset[filled] |= offset == 0
            filled += count
            piece += 1
        return filled
