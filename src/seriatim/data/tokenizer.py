"""Text to token ids and back.

Every tokenizer has `vocab_size`, `boundary` (the id that begins every document and, as a target, ends it), `encode`,
`decode`, `decoder` (for text that arrives token by token) and `spec` (plain data for `load_tokenizer`).
"""

import codecs
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from seriatim.core.errors import SeriatimError

__all__ = ["ByteTokenizer", "Decoder", "HFTokenizer", "Tokenizer", "load_tokenizer"]

# What the end or the beginning of a text is called in the tokenizer files that are in use, in the order of preference.
_BOUNDARY_NAMES = (
    "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "<|begin_of_text|>", "<s>", "<bos>", "[BOS]",
)  # fmt: skip
_LONGEST_CHARACTER = 4  # bytes of UTF-8, so at most so many tokens


class Decoder(Protocol):
    """Turns ids that arrive one by one into text, never half a character."""

    def feed(self, token: int) -> str:
        """The characters that are complete now; often "" while a character's bytes arrive."""

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, or ""."""


class Tokenizer(ABC):
    """Text to ids and back.

    Attributes:
        vocab_size: ids are 0 .. vocab_size - 1.
        boundary: the id of the document boundary. No text encodes to it.
    """

    vocab_size: int
    boundary: int

    @abstractmethod
    def compact(self, text: bytes | str) -> np.ndarray:
        """The ids of a text in the smallest unsigned dtype at hand, without the boundary: for storing many."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The text of the ids, boundaries left out."""

    @abstractmethod
    def decoder(self) -> Decoder:
        """A new decoder for one stream of ids."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Plain data from which `load_tokenizer` makes the same tokenizer."""

    def encode(self, text: bytes | str) -> np.ndarray:
        """The ids of a text, (length,) int64, without the boundary."""
        return self.compact(text).astype(np.int64)


class ByteTokenizer(Tokenizer):
    """Bytes: ids 0 .. 255 are the bytes of UTF-8, 256 the document boundary."""

    vocab_size = 257
    boundary = 256

    def compact(self, text: bytes | str) -> np.ndarray:
        return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        ids = np.asarray(ids, np.int64)
        return ids[ids < self.boundary].astype(np.uint8).tobytes()

    def decoder(self) -> Decoder:
        return _ByteDecoder()

    def spec(self) -> dict[str, Any]:
        return {"tokenizer": "bytes"}


class HFTokenizer(Tokenizer):
    """A Hugging Face `tokenizers` file (`tokenizer.json`).

    The boundary is the file's own end-of-text or begin-of-text token, or one id more where it has none. Special tokens
    written out in a text are read as plain text.

    Raises:
        SeriatimError: the package `tokenizers` is missing, or the file is missing or no tokenizer.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            from tokenizers import Tokenizer as Inner
        except ImportError as error:
            raise SeriatimError(f"tokenizer {path} needs tokenizers: pip install 'seriatim[text]'") from error
        if not self.path.is_file():
            raise SeriatimError(f"tokenizer is {str(path)!r}; it must be 'bytes' or the path of a tokenizer.json")
        try:
            self.json = self.path.read_text(encoding="utf-8")
            self._inner = Inner.from_str(self.json)
        except Exception as error:  # the Rust side raises bare Exception
            raise SeriatimError(f"tokenizer file {path} cannot be read: {error}") from error
        self._inner.encode_special_tokens = True
        ids = self._inner.get_vocab(with_added_tokens=True)
        named = [ids[name] for name in _BOUNDARY_NAMES if name in ids]
        size = max(ids.values(), default=-1) + 1
        self.boundary = named[0] if named else size
        self.vocab_size = size if named else size + 1

    def compact(self, text: bytes | str) -> np.ndarray:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        try:
            ids = self._inner.encode(text, add_special_tokens=False).ids
        except Exception as error:  # the Rust side raises bare Exception
            raise SeriatimError(f"tokenizer file {self.path} cannot encode the text: {error}") from error
        return np.array(ids, np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> bytes:
        return self._text([int(token) for token in ids if token != self.boundary]).encode()

    def decoder(self) -> Decoder:
        return _TextDecoder(self)

    def spec(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.json.encode()).hexdigest()
        return {"tokenizer": "file", "path": str(self.path.resolve()), "sha256": digest}

    def _text(self, ids: list[int]) -> str:
        return self._inner.decode(ids, skip_special_tokens=False)


def load_tokenizer(spec: str | Mapping[str, Any], folder: str | Path | None = None) -> Tokenizer:
    """The tokenizer of a name, a path or a spec.

    Args:
        spec: "bytes", the path of a `tokenizer.json`, or what `Tokenizer.spec` returned.
        folder: where to look for `tokenizer.json` first when a spec is given: a run keeps its own copy.

    Raises:
        SeriatimError: no such tokenizer, or the file is no longer the one that the spec describes.
    """
    if isinstance(spec, str):
        return ByteTokenizer() if spec == "bytes" else HFTokenizer(spec)
    if spec.get("tokenizer") == "bytes":
        return ByteTokenizer()
    if spec.get("tokenizer") != "file" or "path" not in spec:
        raise SeriatimError(f"tokenizer is {dict(spec)!r}; its 'tokenizer' must be 'bytes', or 'file' with a 'path'")
    copy = Path(folder) / "tokenizer.json" if folder is not None else None
    tokenizer = HFTokenizer(copy if copy is not None and copy.is_file() else spec["path"])
    if spec.get("sha256") not in (None, tokenizer.spec()["sha256"]):
        raise SeriatimError(f"tokenizer file {tokenizer.path} has changed since the model was trained with it")
    return tokenizer


class _ByteDecoder:
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if token < 256 else self.flush()

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _TextDecoder:
    """A piece's text may depend on the piece before it (a space, a byte of the same character), so each new piece is
    decoded together with the last ones that were shown, and what is new at the end is returned."""

    def __init__(self, tokenizer: HFTokenizer):
        self._tokenizer = tokenizer
        self._shown: list[int] = []
        self._pending: list[int] = []

    def feed(self, token: int) -> str:
        if token == self._tokenizer.boundary:
            rest = self.flush()
            self._shown = []
            return rest
        self._pending.append(token)
        text = self._new_text()
        unfinished = text.endswith("\ufffd") and len(self._pending) < _LONGEST_CHARACTER
        return "" if unfinished else self._show(text)

    def flush(self) -> str:
        return self._show(self._new_text()) if self._pending else ""

    def _new_text(self) -> str:
        before = self._tokenizer._text(self._shown)
        return self._tokenizer._text(self._shown + self._pending)[len(before) :]

    def _show(self, text: str) -> str:
        self._shown, self._pending = self._pending, []
        return text
