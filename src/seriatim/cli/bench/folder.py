"""Where the figures go: never over anything but an earlier benchmark, and that only when asked."""

import json
import os
from pathlib import Path

from seriatim.core.errors import SeriatimError

__all__ = ["FILES", "choose_folder"]

FILES = ("bench.json", "table.txt", "roofline.png", "ratios.png")


def choose_folder(given: str | None, what: str, overwrite: bool) -> Path:
    """The folder to write into; nothing is written yet. Without `given` it is the first free one of runs/bench-WHAT.

    Raises:
        SeriatimError: it holds something (with `overwrite`, something else than a benchmark), or cannot be written.
    """
    path = Path(given) if given is not None else Path("runs") / f"bench-{what}"
    if given is None and not overwrite:
        path = _first_free(path)
    existing = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    if not existing.is_dir():
        raise SeriatimError(f"out is {path}, which cannot be a folder: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SeriatimError(f"out is {path}, which cannot be written: no permission to write in {existing}")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise SeriatimError(f"out is {path}, which is not empty; choose a new folder, or add --overwrite")
        if not _is_benchmark(path):
            raise SeriatimError(f"out is {path}, which does not hold a benchmark; choose another folder")
    return path


def _first_free(path: Path) -> Path:
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _is_benchmark(path: Path) -> bool:
    """Whether nothing is there but what a benchmark leaves."""
    if any(entry.name not in FILES for entry in path.iterdir()):
        return False
    try:
        return "rows" in json.loads((path / "bench.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
