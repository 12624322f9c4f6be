"""Named intermediates and auxiliary losses, collected only when asked for.

    with taps.collect(model) as found:
        model(tokens)
    found.values["blocks.0.mixer.gate"]      # a list, one entry a call
    found.loss()                             # the sum of the auxiliary losses, 0 where there are none

A module offers a value with `tap(self, "gate", gate)` and a loss with `add_loss(self, "balance", value)`; both cost
nothing while nobody collects.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

__all__ = ["Collected", "add_loss", "collect", "is_collecting", "tap"]


class Collected:
    """What one `collect` block saw. values and losses: full name to a list of tensors, in the order of the calls."""

    def __init__(self, model: nn.Module, pattern: str):
        self.values: dict[str, list[Tensor]] = {}
        self.losses: dict[str, list[Tensor]] = {}
        self._pattern = pattern
        self._names = {id(module): name for name, module in model.named_modules()}

    def loss(self) -> Tensor | float:
        """The sum of every auxiliary loss."""
        found = [loss for losses in self.losses.values() for loss in losses]
        return torch.stack(found).sum() if found else 0.0

    def _keep(self, kept: dict[str, list[Tensor]], module: nn.Module, name: str, value: Tensor) -> None:
        if id(module) not in self._names:
            return
        full = f"{self._names[id(module)]}.{name}".lstrip(".")
        if kept is self.losses or fnmatchcase(full, self._pattern):
            kept.setdefault(full, []).append(value)


_collecting: list[Collected] = []  # innermost last; empty but inside `collect`


@contextmanager
def collect(model: nn.Module, pattern: str = "*") -> Iterator[Collected]:
    """Collects what the modules of `model` offer under names that match `pattern`, and all auxiliary losses."""
    found = Collected(model, pattern)
    _collecting.append(found)
    try:
        yield found
    finally:
        _collecting.remove(found)


def is_collecting() -> bool:
    """Whether anybody does."""
    return bool(_collecting)


def tap(module: nn.Module, name: str, value: Tensor) -> None:
    """Offers an intermediate under the module's own name."""
    for found in _collecting:
        found._keep(found.values, module, name, value)


def add_loss(module: nn.Module, name: str, value: Tensor) -> None:
    """Offers an auxiliary loss (a scalar) that a training objective may add to its own."""
    for found in _collecting:
        found._keep(found.losses, module, name, value)
