"""States as flat lists of tensors, and back."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

__all__ = ["flatten", "rebuild"]


def flatten(state: Any, leaves: list[Tensor]) -> Any:
    """Appends the leaves; returns the structure: None for a tensor, else the tuple's type and its parts' structures.

    Raises TypeError for anything else.
    """
    if type(state) is Tensor:
        leaves.append(state)
        return None
    if not isinstance(state, tuple):
        raise TypeError
    structure: list[Any] = [type(state)]
    for part in state:
        if type(part) is Tensor:
            leaves.append(part)
            structure.append(None)
        else:
            structure.append(flatten(part, leaves))
    return tuple(structure)


def rebuild(structure: Any, leaves: Iterator[Tensor]) -> Any:
    """The inverse of `flatten`."""
    if structure is None:
        return next(leaves)
    # Past the class's own constructor, which for a NamedTuple takes longer than the rest.
    parts = [next(leaves) if part is None else rebuild(part, leaves) for part in structure[1:]]
    return tuple.__new__(structure[0], parts)
