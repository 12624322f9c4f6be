"""Checks on paths, made before long work rather than after it."""

import os
from pathlib import Path

from seriatim.core.errors import SeriatimError

__all__ = ["check_writable", "read_bytes"]


def check_writable(option: str, path: str) -> None:
    """Raises SeriatimError unless a file can be written there."""
    folder = Path(path).resolve().parent
    if Path(path).is_dir():
        raise SeriatimError(f"{option} is {path!r}, which is a folder; it must name a file")
    if Path(path).exists() and not Path(path).is_file():
        raise SeriatimError(f"{option} is {path!r}, which is no file but a device or a pipe; it must name a file")
    if not folder.is_dir():
        raise SeriatimError(f"{option} is {path!r}; its folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise SeriatimError(f"{option} is {path!r}; its folder {folder} cannot be written to")


def read_bytes(option: str, path: str) -> bytes:
    """The file's bytes. Raises SeriatimError, naming the option, where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SeriatimError(f"{option} is {path!r}, which cannot be read: {error.strerror}") from error
