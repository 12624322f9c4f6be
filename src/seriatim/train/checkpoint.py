"""Checkpoints: everything a run needs to go on as if it had never stopped.

    checkpoints/step-00000050/
        model.safetensors       the weights
        training.safetensors    the optimiser's averages, the random generators, and tensors in the position in the data
        state.safetensors       the state carried from batch to batch, where there is one
        meta.json               step, position in the data, config, and the SHA-256 of the files above and of itself

There is no pickle in them. A folder appears whole or not at all, and a damaged one is found by its checksums.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from seriatim.core import state as states
from seriatim.core.build import build, spec
from seriatim.core.errors import SeriatimError, check_one_of
from seriatim.core.optimiser_state import flat_optimiser, restore_optimiser
from seriatim.train import generators
from seriatim.train.durable import new_folder
from seriatim.train.run_folder import step_folders
from seriatim.train.training import Progress, Training
from seriatim.train.weights import load_weights, weights

__all__ = ["CheckpointError", "load", "newest", "progress_of", "read_meta", "restore", "save", "save_model"]

_FORMAT = 1


class CheckpointError(SeriatimError):
    """A checkpoint that cannot be used; the message says which and why."""


def save(folder: Path, training: Training, config: Mapping[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all. Raises OSError where it cannot be written."""
    optimiser, scalars = flat_optimiser(training.optimiser)
    drawn = _within("generator", generators.capture())
    position = training.batches.state_dict()
    large = {name: value for name, value in position.items() if isinstance(value, Tensor)}
    with new_folder(folder) as partial:
        _write_tensors(weights(training.model), partial / "model.safetensors")
        _write_tensors({**optimiser, **drawn, **_within("batches", large)}, partial / "training.safetensors")
        if training.state is not None:
            states.save(training.state, partial / "state.safetensors")
        rest = {"batches": {k: v for k, v in position.items() if k not in large}, "optimiser": scalars}
        _write_meta(partial, training.model, training.progress, config, rest)


def save_model(folder: Path, model: nn.Module, progress: Progress, config: Mapping[str, Any]) -> None:
    """Writes a checkpoint that `load` reads and nothing can be trained on from: the weights and what describes them."""
    with new_folder(folder) as partial:
        _write_tensors(weights(model), partial / "model.safetensors")
        _write_meta(partial, model, progress, config, {})


def _write_meta(
    partial: Path, model: nn.Module, progress: Progress, config: Mapping[str, Any], rest: Mapping[str, Any]
) -> None:
    """meta.json, once all else is there."""
    meta: dict[str, Any] = {
        "format": _FORMAT,
        "step": progress.step,
        "progress": asdict(progress),
        **rest,
        "model": spec(model),
        "config": dict(config),
        "sha256": {file.name: _digest(file) for file in sorted(partial.iterdir())},
    }
    meta["sha256"]["meta.json"] = _meta_digest(meta)
    (partial / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
    for file in partial.iterdir():  # safetensors lets only the owner read
        file.chmod((partial / "meta.json").stat().st_mode)


def restore(folder: Path, training: Training) -> None:
    """Puts a run, whose parts were made as they were made for the run that saved, where the checkpoint found it.

    Raises CheckpointError where the checkpoint is damaged, SeriatimError where it is of another model or other data.
    """
    meta = read_meta(folder)
    if "training.safetensors" not in meta["sha256"]:
        raise CheckpointError(f"checkpoint {folder} holds a model and nothing of its training, which cannot go on")
    stored = load_file(folder / "training.safetensors")
    training.batches.load_state_dict({**meta["batches"], **_inside("batches", stored)})
    load_weights(training.model, load_file(folder / "model.safetensors"), str(folder))
    restore_optimiser(training.optimiser, {**stored, **meta["optimiser"]})
    if "state.safetensors" in meta["sha256"]:
        like = training.model.init_state(1)  # type: ignore[operator]
        loaded = states.load(folder / "state.safetensors", like)
        training.state = states.map_state(torch.clone, loaded)  # out of the file's memory, which is aligned otherwise
    training.progress = Progress(**meta["progress"])
    generators.restore(_inside("generator", stored))


def newest(path: Path, say: Callable[[str], None] | None = None) -> Path | None:
    """The newest sound checkpoint of the run in `path`; None where there is no checkpoint.

    Each damaged one that is passed over is named in a line given to `say` (by default printed to stderr). Raises
    CheckpointError where all are damaged.
    """
    say = say or _warn
    damaged: list[str] = []
    folders = step_folders(path)
    for folder in reversed(folders):
        try:
            read_meta(folder)
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        for reason in damaged:
            say(f"warning: {reason}; using {folder.name} instead")
        return folder
    if damaged:
        raise CheckpointError(f"no checkpoint in {path} can be used: {'; '.join(damaged)}")
    return None


def load(path: str | PathLike[str], which: str = "newest") -> Any:
    """The trained model, on the CPU, in evaluation mode.

    Args:
        path: a run's folder or one checkpoint's.
        which: of a run's checkpoints, the "newest" or the "best" by validation.

    Raises:
        SeriatimError: there is no checkpoint, or none that can be used.
    """
    check_one_of("which", which, ("newest", "best"))
    folder = _find(Path(path), which)
    meta = read_meta(folder)
    model = build(meta["model"])
    load_weights(model, load_file(folder / "model.safetensors"), str(folder))
    return model.eval()


def progress_of(path: str | PathLike[str]) -> Progress:
    """How far the model was trained that `load` reads."""
    return Progress(**read_meta(_find(Path(path), "newest"))["progress"])


def read_meta(folder: Path) -> dict[str, Any]:
    """What meta.json says, once every file of the checkpoint has been compared with its checksum."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        digests = dict(meta["sha256"])
        own = digests.pop("meta.json")
        if own != _meta_digest(meta):
            raise CheckpointError(f"checkpoint {folder} is damaged: meta.json is not what was written")
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                raise CheckpointError(f"checkpoint {folder} is damaged: {name} is not what was written")
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {folder} is damaged: {Path(error.filename).name} is missing") from error
    except OSError as error:
        raise CheckpointError(f"checkpoint {folder} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"checkpoint {folder} is damaged: meta.json cannot be read") from error
    if meta["format"] != _FORMAT:
        raise CheckpointError(f"checkpoint {folder} has format {meta['format']}; this version reads {_FORMAT}")
    return meta


def _find(path: Path, which: str) -> Path:
    if not path.is_dir():
        raise SeriatimError(f"{path} is not a folder; a run's folder or a checkpoint's is needed")
    if (path / "meta.json").exists() or (path / "model.safetensors").exists():
        return path
    folder = newest(path)
    if folder is None:
        raise SeriatimError(f"{path} holds no checkpoint; it must be a run's folder or a checkpoint's")
    if which == "best":
        step = read_meta(folder)["progress"]["best_step"]
        best = [other for other in step_folders(path) if int(other.name.removeprefix("step-")) == step]
        if not best:
            raise SeriatimError(f"{path} has kept no best checkpoint; the run must be trained with patience above 0")
        return best[0]
    return folder


def _within(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that they have in a file of several parts."""
    return {f"{part}.{name}": tensor for name, tensor in tensors.items()}


def _inside(part: str, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `_within` put there."""
    found = {name.partition("."): tensor for name, tensor in stored.items()}
    return {name: tensor for (first, _, name), tensor in found.items() if first == part}


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # also where the disk is full
        raise OSError(str(error)) from error


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _meta_digest(meta: Mapping[str, Any]) -> str:
    """Of everything in meta.json but this digest itself."""
    rest = {**meta, "sha256": {name: digest for name, digest in meta["sha256"].items() if name != "meta.json"}}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
