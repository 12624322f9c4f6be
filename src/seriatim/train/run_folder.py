"""A run's folder: config.json, log.jsonl, checkpoints/step-00000050/... No torch here."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from seriatim.core.errors import SeriatimError
from seriatim.train.durable import remove_folder, write_file
from seriatim.train.settings import TrainSettings

__all__ = ["RunFolder", "step_folders"]

_STEP = re.compile(r"step-(\d{8,})")
_ABSENT = object()


class RunFolder:
    """The folder that a run writes into. Making one checks everything and writes nothing; `prepare` writes.

    Args:
        path: the folder; it need not exist.
        config: all that describes the run, as plain data: "model" is the model's spec and "train" the settings.
        resume: go on with the run that is there. A folder without a checkpoint is then a run killed before its first
        one.
        attachments: other files that the run should keep, name to content.

    Raises:
        SeriatimError: the folder cannot be written, holds something although resume is false, or holds a run of another
            config. Settings that do not change what is computed (`TrainSettings.free`) may differ.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        resume: bool = False,
        attachments: Mapping[str, str] | None = None,
    ):
        self.path = Path(path)
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self.resume = resume
        self.attachments = dict(attachments or {})
        self.log_path = self.path / "log.jsonl"
        self.checkpoints = self.path / "checkpoints"
        _check_writable(self.path)
        found = sorted(entry.name for entry in self.path.iterdir()) if self.path.is_dir() else []
        if found and not resume:
            raise SeriatimError(f"out is {self.path}, which is not empty; choose a new folder, or resume the run in it")
        if (self.path / "config.json").is_file():
            self._check_config()
        elif any(self._is_foreign(name) for name in found):
            raise SeriatimError(f"out is {self.path}, which is not a run's folder: it has no config.json")

    def prepare(self) -> None:
        """Makes the folder and writes the config. Remains of a write that was cut short are removed."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            for partial in [*self.path.glob(".partial-*"), *self.checkpoints.glob(".partial-*")]:
                shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
            for name, content in self.attachments.items():
                write_file(self.path / name, content)
            write_file(self.path / "config.json", json.dumps(self.config, indent=2) + "\n")
        except OSError as error:
            raise SeriatimError(f"out is {self.path}, which cannot be written: {error.strerror}") from error

    def step_folder(self, step: int) -> Path:
        """Where the checkpoint of a step belongs."""
        return self.checkpoints / f"step-{step:08d}"

    def steps(self) -> list[Path]:
        """The checkpoints that there are, oldest first."""
        return step_folders(self.path)

    def set_aside(self, newest: Path) -> None:
        """Renames the checkpoints after `newest`, which are damaged, so that they are not met again."""
        folders = self.steps()
        for damaged in folders[folders.index(newest) + 1 :]:
            aside = damaged.with_name(f"damaged-{damaged.name}")
            shutil.rmtree(aside, ignore_errors=True)
            damaged.replace(aside)

    def prune(self, keep: int, best: int | None = None) -> None:
        """Removes all checkpoints but the newest `keep`, and that of the step `best`."""
        for old in self.steps()[:-keep]:
            if best is None or old != self.step_folder(best):
                remove_folder(old)

    def _check_config(self) -> None:
        path = self.path / "config.json"
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SeriatimError(f"{path} cannot be read: {error}") from error
        if isinstance(kept, dict) and "quantized" in kept:
            raise SeriatimError(f"the run in {self.path} is quantised and cannot be trained on")
        free = {f"train.{name}" for name in TrainSettings.free()}
        old, new = dict(_flat(kept)), dict(_flat(self.config))
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in free and old.get(key, _ABSENT) != new.get(key, _ABSENT):
                there, here = _shown(old, key), _shown(new, key)
                raise SeriatimError(
                    f"the run in {self.path} has another config: {key} is {there} there and {here} here"
                )

    def _is_foreign(self, name: str) -> bool:
        """Whether a run that was killed while it began could not have left this."""
        ours = {"checkpoints", *self.attachments}
        return name not in ours and not name.startswith(".partial-")


def step_folders(path: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    found = {
        int(match[1]): entry
        for entry in (path / "checkpoints").glob("step-*")
        if (match := _STEP.fullmatch(entry.name))
    }
    return [found[step] for step in sorted(found)]


def _check_writable(path: Path) -> None:
    existing = next(folder for folder in [path, *path.absolute().parents] if folder.exists())
    if not existing.is_dir():
        raise SeriatimError(f"out is {path}, which cannot be a folder: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise SeriatimError(f"out is {path}, which cannot be written: no permission to write in {existing}")


def _flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; lists are values."""
    if not isinstance(config, dict) or not config:
        yield prefix, config
        return
    for key, value in config.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else key)


def _shown(flat: Mapping[str, Any], key: str) -> str:
    return json.dumps(flat[key]) if key in flat else "absent"
