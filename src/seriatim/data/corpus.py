"""Text to learn from, split into train, validation and test.

A folder (the standard library is one) is split by file: the SHA-256 of a file's path inside the folder decides, so that
a file never moves from one part to another whatever else comes and goes. A single file is split by position: its first
90 %, the next 5 % and the last 5 %; so is each file of a folder too small for every part to get one.
"""

import hashlib
import os
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from seriatim.core.errors import SeriatimError

__all__ = ["Corpus", "Document", "load_corpus", "part_of"]

_SHARES = (0.90, 0.05, 0.05)
_SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages"}


class Document(NamedTuple):
    """One text: its path inside the corpus, and its bytes, which are UTF-8."""

    name: str
    data: bytes


class Corpus(NamedTuple):
    """A text in three parts. `skipped` names the files of the folder that are empty or no text (binary, not UTF-8)."""

    name: str
    train: Sequence[Document]
    validation: Sequence[Document]
    test: Sequence[Document]
    skipped: Sequence[str] = ()


def load_corpus(source: str | os.PathLike[str]) -> Corpus:
    """Reads a corpus whole into memory.

    Args:
        source: "stdlib", the Python source of the running interpreter's standard library; or the path of a text file;
            or that of a folder, of which every text file is read, subfolders included and hidden ones not.

    Raises:
        SeriatimError: the path does not exist, cannot be read, or holds no text.
    """
    if source == "stdlib":
        folder = Path(sysconfig.get_path("stdlib"))
        return _read_folder(folder, "stdlib", ".py")
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, str(path))
    if not path.exists():
        raise SeriatimError(f"data is {str(source)!r}, which does not exist; it must be 'stdlib', a file or a folder")
    if not path.is_file():  # a pipe could not be read again, and a device may never end
        raise SeriatimError(f"data is {str(source)!r}, which is a device or a pipe; it must be a file or a folder")
    data = _read(path)
    if not data:
        raise SeriatimError(f"data file {path} is empty")
    problem = _not_text(data)
    if problem:
        raise SeriatimError(f"data file {path} is not text: {problem}; it must be UTF-8")
    train, validation, test = _cut([Document(path.name, data)])
    return Corpus(str(path), train, validation, test)


def part_of(name: str) -> int:
    """0 train, 1 validation or 2 test: where a file of a folder belongs by its path inside that folder."""
    place = int.from_bytes(hashlib.sha256(name.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64
    return 0 if place < _SHARES[0] else 1 if place < _SHARES[0] + _SHARES[1] else 2


def _read_folder(folder: Path, name: str, suffix: str = "") -> Corpus:
    documents, skipped = [], []
    for path in _files(folder, suffix):
        inside = path.relative_to(folder).as_posix()
        data = _read(path)
        if not data or _not_text(data):
            skipped.append(inside)
        else:
            documents.append(Document(inside, data))
    if not documents:
        seen = f"its {len(skipped)} files are binary or empty" if skipped else "it holds no files"
        raise SeriatimError(f"data folder {folder} has no text in it: {seen}")
    parts: list[list[Document]] = [[], [], []]
    for document in documents:
        parts[part_of(document.name)].append(document)
    if not all(parts):
        parts = _cut(documents)
    train, validation, test = parts
    return Corpus(name, train, validation, test, skipped)


def _files(folder: Path, suffix: str) -> Iterator[Path]:
    """Every file, in the order of names whatever the file system's; links to folders are not followed."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith("."))
        for file in sorted(files):
            if file.endswith(suffix) and not file.startswith(".") and (Path(root) / file).is_file():
                yield Path(root) / file


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SeriatimError(f"data file {path} cannot be read: {error.strerror}") from error


def _not_text(data: bytes) -> str | None:
    if b"\0" in data:
        return "it holds NUL bytes"
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return f"byte {error.start} cannot be decoded"
    return None


def _cut(documents: Sequence[Document]) -> list[list[Document]]:
    """Each document by position. A part of it that is empty is left out."""
    parts: list[list[Document]] = [[], [], []]
    for name, data in documents:
        first = _good_cut(data, round(len(data) * _SHARES[0]))
        second = max(first, _good_cut(data, round(len(data) * (_SHARES[0] + _SHARES[1]))))
        for part, piece in zip(parts, (data[:first], data[first:second], data[second:]), strict=True):
            if piece:
                part.append(Document(name, piece))
    return parts


def _good_cut(data: bytes, near: int) -> int:
    """The end of the line that `near` is in, or of its character where that is far."""
    end = data.find(b"\n", near, near + len(data) // 100) + 1
    if end:
        return end
    while near < len(data) and data[near] & 0b1100_0000 == 0b1000_0000:  # inside a character
        near += 1
    return near
