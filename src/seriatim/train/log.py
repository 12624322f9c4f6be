"""The log: one JSON object a line, one line a step."""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from seriatim.train.durable import write_file

__all__ = ["JsonLines", "read_log"]


class JsonLines:
    """Appends to a log file; each line is there as soon as it is written.

    Args:
        path: the file.
        step: the step that the run goes on from. Later lines, written by a run that was then killed, are removed, and
            so is a last line that was cut short.
    """

    def __init__(self, path: Path, step: int = 0):
        if path.exists():
            kept = [record for record in read_log(path) if record["step"] <= step]
            write_file(path, "".join(json.dumps(record) + "\n" for record in kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line."""
        self._file.write(json.dumps(record) + "\n")

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; one that was cut short, or is no record, is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
            records.append({**record, "step": int(record["step"])})
        except (ValueError, TypeError, KeyError):
            continue
    return records
