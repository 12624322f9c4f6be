"""Files and folders that are written whole or not at all, whenever the process or the machine stops. No torch here.

Everything is written beside its place under a name that begins with `.partial-`, forced to the disk, and renamed,
which is one act of the file system.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["new_folder", "remove_folder", "write_file"]


def write_file(path: Path, content: str) -> None:
    """Writes or replaces a text file."""
    partial = path.with_name(f".partial-{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    _sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to write files into, which becomes `path` at the end of the block; a folder that was there is
    replaced.
    After an exception nothing is left of it."""
    partial = path.with_name(f".partial-{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            _sync(file)
        _sync(partial)
        if path.exists():  # a folder cannot be renamed onto another
            remove_folder(path)
        partial.replace(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def remove_folder(path: Path) -> None:
    """Removes a folder: from its place at once, then from the disk."""
    doomed = path.with_name(f".partial-old-{path.name}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.replace(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder, and keeps its names itself
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
