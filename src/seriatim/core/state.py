"""Functions on states, written once for every mixer.

A state is a tensor or a (named) tuple of states; `()` is the state of a mixer that carries nothing. Every leaf is batch
first. A leaf that grows with what was read (an attention cache) grows along its second dimension, and in such a state
an integer leaf holds -1 where a slot is empty; so states of different growth can be padded and put together.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.core.errors import SeriatimError

__all__ = [
    "State",
    "batch_size",
    "check_state",
    "detach",
    "join",
    "leaves",
    "load",
    "map_state",
    "nbytes",
    "save",
    "take",
    "to",
    "where",
]

State: TypeAlias = (
    Any  # Tensor | tuple[State, ...]; a recursive alias that type checkers would not accept from NamedTuples
)


def map_state(function: Callable[..., Any], state: State, *rest: State) -> State:
    """Applies `function` to matching leaves and rebuilds the structure."""
    if isinstance(state, Tensor):
        return function(state, *rest)
    parts = [map_state(function, *matching) for matching in zip(state, *rest, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def leaves(state: State, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the state with its dotted name."""
    if isinstance(state, Tensor):
        yield name or "state", state
        return
    keys = getattr(state, "_fields", range(len(state)))
    for key, part in zip(keys, state, strict=True):
        yield from leaves(part, f"{name}.{key}" if name else str(key))


def batch_size(state: State) -> int | None:
    """Rows of the batch; None for a state without tensors."""
    return next((leaf.size(0) for _, leaf in leaves(state)), None)


def take(state: State, rows: Tensor) -> State:
    """Rows of the batch in a new order: beam reorder, fork (a row twice), drop (a row left out). rows (N,) int."""
    return map_state(lambda leaf: leaf.index_select(0, rows.to(leaf.device)), state)


def where(rows: Tensor, new: State, old: State) -> State:
    """The new state in the rows that are true, the old one elsewhere. rows (B,) bool."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        a, b = _same_growth([a, b])
        return torch.where(rows.to(a.device).view(-1, *[1] * (a.dim() - 1)), a, b)

    return map_state(choose, new, old)


def join(states: Sequence[State]) -> State:
    """One state whose batch is the batches of `states`, in order."""
    if not states:
        raise SeriatimError("states is empty; join takes at least one state")
    return map_state(lambda *parts: torch.cat(_same_growth(parts)), *states)


def detach(state: State) -> State:
    """The same values, cut from the graph: truncated back-propagation."""
    return map_state(Tensor.detach, state)


def to(state: State, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> State:
    """Moves the state; `dtype` applies to its floating leaves."""
    return map_state(lambda leaf: leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None), state)


def nbytes(state: State) -> int:
    """Memory the state holds, in bytes."""
    return sum(leaf.numel() * leaf.element_size() for _, leaf in leaves(state))


def check_state(owner: str, state: State, like: State, batch: int) -> None:
    """Raises SeriatimError unless a state has the structure of `like`, however far it has grown, and `batch` rows."""
    if isinstance(like, Tensor) != isinstance(state, Tensor) or not isinstance(state, Tensor | tuple):
        raise SeriatimError(f"{owner}: state is a {type(state).__name__}; it must be a {type(like).__name__}")
    stray = _stray(state)
    if stray:
        raise SeriatimError(f"{owner}: state holds a {stray}; it must be tensors, alone or in tuples")
    found = dict(leaves(state))
    difference = _difference(found, dict(leaves(like)))
    if difference:
        raise SeriatimError(f"{owner}: state is another model's: {difference}")
    for name, leaf in found.items():
        if leaf.size(0) != batch:
            raise SeriatimError(f"{owner}: state {name} has {leaf.size(0)} rows; x has {batch}")


def save(state: State, path: str | PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the state as safetensors, whole or not at all. `load` compares `metadata` with what it is given.

    Raises OSError where the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if Path(path).exists() and not Path(path).is_file():
        raise SeriatimError(f"state file {path} is a folder, a device or a pipe; it must be a file")
    path = Path(path).resolve()  # a link stays one: what it points to is replaced
    tensors = {name: _storable(leaf) for name, leaf in leaves(state)}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata={"format": "seriatim.state", **(metadata or {})})
        partial.replace(path)
    except SafetensorError as error:  # also where the disk is full
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | PathLike[str], like: State, metadata: Mapping[str, str] | None = None) -> State:
    """Reads a state that `save` wrote, with the structure, dtypes and devices of `like` (`model.init_state(1)`).

    Raises SeriatimError where the file is not such a state: other names or shapes (batch and growth may differ), or a
    metadata entry that differs from the one given here.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise SeriatimError(f"state file {path} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise SeriatimError(f"state file {path} cannot be read: {error}") from error
    for key, value in (metadata or {}).items():
        if found.get(key) != value:
            raise SeriatimError(
                f"state file {path} belongs to another model: its {key} is {found.get(key)}, not {value}"
            )
    _check_stored(stored, like, path)
    names = iter([name for name, _ in leaves(like)])
    return map_state(lambda leaf: _restored(stored[next(names)], leaf), like)


def _same_growth(parts: Sequence[Tensor]) -> list[Tensor]:
    """Pads the second dimension of grown leaves to the longest, with empty slots."""
    if parts[0].dim() < 2 or len({part.size(1) for part in parts}) == 1:
        return list(parts)
    longest = max(part.size(1) for part in parts)

    def pad(part: Tensor) -> Tensor:
        empty = 0 if part.is_floating_point() or part.is_complex() else -1
        return F.pad(part, [0, 0] * (part.dim() - 2) + [0, longest - part.size(1)], value=empty)

    return [pad(part) for part in parts]


def _storable(leaf: Tensor) -> Tensor:
    leaf = leaf.detach().cpu()
    return (torch.view_as_real(leaf) if leaf.is_complex() else leaf).contiguous().clone()


def _restored(stored: Tensor, like: Tensor) -> Tensor:
    stored = stored.clone()  # what was read lies at any address; complex arithmetic ends in a crash at an odd one
    stored = torch.view_as_complex(stored) if like.is_complex() else stored
    return stored.to(device=like.device, dtype=like.dtype)


def _check_stored(stored: Mapping[str, Tensor], like: State, path: str | PathLike[str]) -> None:
    wanted = {name: _storable(leaf) for name, leaf in leaves(like)}
    difference = _difference(stored, wanted)
    if difference:
        raise SeriatimError(f"state file {path} belongs to another model: {difference}")


def _stray(state: State) -> str | None:
    """The type of the first thing in it that no state has."""
    if isinstance(state, Tensor):
        return None
    return next(filter(None, map(_stray, state)), None) if isinstance(state, tuple) else type(state).__name__


def _difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """In what the leaves of a state have not the names, shapes and kinds of number of another; rows do not count."""
    if found.keys() != wanted.keys():
        return f"the states differ in {', '.join(sorted(found.keys() ^ wanted.keys())[:4])}"
    for name, leaf in wanted.items():
        ours, theirs = list(leaf.shape), list(found[name].shape)
        grows = len(ours) > 1 and ours[1] == 0  # an empty cache says that this dimension grows
        ours[0] = theirs[0] if theirs else -1
        if grows and len(theirs) > 1:
            ours[1] = theirs[1]
        if ours != theirs:
            return f"{name} has shape {theirs}, not {ours}"
        if leaf.is_floating_point() != found[name].is_floating_point():
            return f"{name} has dtype {found[name].dtype}, not {leaf.dtype}"
    return None
