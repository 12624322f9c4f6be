"""A trained model with the tokenizer it was trained with, from its run folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from seriatim.core.errors import SeriatimError

if TYPE_CHECKING:
    from seriatim.data.tokenizer import Tokenizer

__all__ = ["Run", "open_run", "read_config"]


class Run(NamedTuple):
    """config: what the run was started with, as plain data. model: in evaluation mode."""

    folder: Path
    config: dict[str, Any]
    model: Any
    tokenizer: "Tokenizer"


def open_run(path: str, device: str = "cpu") -> Run:
    """Loads a run, or one checkpoint of a run, onto a device ("auto": a GPU where there is one).

    Raises SeriatimError where the folder is neither, or the device is not there.
    """
    config = read_config(path)
    if "task" in config:
        raise SeriatimError(f"run {path!r} was trained on the task {config['task']['task']!r}; it has read no text")

    from seriatim.data.tokenizer import load_tokenizer
    from seriatim.train.checkpoint import load
    from seriatim.train.hardware import choose_device

    place = choose_device(device)
    folder = Path(path)
    home = folder.resolve().parent.parent if (folder / "meta.json").is_file() else folder  # of a checkpoint, its run's
    return Run(folder, config, load(path).to(place), load_tokenizer(config["tokenizer"], home))


def read_config(path: str) -> dict[str, Any]:
    """The config of a run's folder, or of a checkpoint's."""
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise SeriatimError(f"run {path!r} {what}; it must be a folder that `seriatim train` wrote")
    source = next((folder / name for name in ("config.json", "meta.json") if (folder / name).is_file()), None)
    if source is None:
        raise SeriatimError(f"run {path!r} is not a run's folder: it has no config.json")
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        config = found["config"] if source.name == "meta.json" else found
        parts = {"model": dict, "train": dict} | (
            {"task": dict} if "task" in config else {"data": str, "tokenizer": dict}
        )
        if all(isinstance(config[name], kind) for name, kind in parts.items()):
            return config
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass
    raise SeriatimError(f"{source} cannot be read; it must describe a run that `seriatim train` wrote")
