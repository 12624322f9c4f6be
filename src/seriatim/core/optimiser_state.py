"""An optimiser's state as named tensors, for checkpoints."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["flat_optimiser", "restore_optimiser"]

_KIND = "optimiser"


def flat_optimiser(optimiser: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The averages by "optimiser.<parameter>.<name>", and what of the state is no tensor. The groups' settings are not
    kept: who makes the optimiser gives them again."""
    tensors, scalars = {}, {}
    for index, entries in optimiser.state_dict()["state"].items():
        for name, value in entries.items():
            key = f"{_KIND}.{index}.{name}"
            if isinstance(value, Tensor):
                tensors[key] = value.detach().cpu().contiguous()
            else:
                scalars[key] = value
    return tensors, scalars


def restore_optimiser(optimiser: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Goes on from what `flat_optimiser` returned, tensors and scalars in one; other names are passed over."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in stored.items():
        kind, _, rest = key.partition(".")
        if kind == _KIND:
            index, _, name = rest.partition(".")
            state.setdefault(int(index), {})[name] = value.clone() if isinstance(value, Tensor) else value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
