"""Which implementation of an op runs. A backend never changes what is computed."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from seriatim.core.errors import check_one_of

__all__ = ["BACKENDS", "backend", "choose"]

BACKENDS = ("reference", "torch")

_chosen: str | None = os.environ.get("SERIATIM_BACKEND") or None
if _chosen is not None:
    check_one_of("SERIATIM_BACKEND", _chosen, BACKENDS)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Inside this block every op uses the named backend where it has it: "reference" (equation as loops) or "torch"."""
    global _chosen
    check_one_of("backend", name, BACKENDS)
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def choose(implementations: Mapping[str, Callable[..., Any]], like: Tensor) -> Callable[..., Any]:
    """The implementation to run on tensors such as `like`: the chosen backend's, or the portable one."""
    return implementations.get(_chosen or "torch", implementations["torch"])
