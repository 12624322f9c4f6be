"""Which implementation of an op runs. A backend never changes what is computed."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from seriatim.core.errors import check_one_of
from seriatim.core.stepping import is_recording
from seriatim.kernels.cpu.operator import available

__all__ = ["BACKENDS", "backend", "choose", "kernels_wanted"]

BACKENDS = ("reference", "torch", "cpu")
KERNEL_DTYPES = (torch.float32, torch.complex64)

_chosen: str | None = os.environ.get("SERIATIM_BACKEND") or None
if _chosen is not None:
    check_one_of("SERIATIM_BACKEND", _chosen, BACKENDS)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Inside this block every op uses the named backend where it has it, and "torch" where not.

    "reference" is the equation as loops, "torch" runs anywhere, "cpu" is the compiled kernels: float32 on the CPU. That
    is also the choice outside any block. bfloat16 and float16 are computed in float32, float64 by "torch".
    """
    global _chosen
    check_one_of("backend", name, BACKENDS)
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def kernels_wanted() -> bool:
    """Whether the choice is the compiled kernels, wherever there are some."""
    return (_chosen or "cpu") == "cpu"


def choose(implementations: Mapping[str, Callable[..., Any]], like: Tensor) -> Callable[..., Any]:
    """The implementation to run on tensors such as `like`, which has the dtype of the computation.

    That of "cpu" lies in kernels/cpu/<op>.py, and its kernels in kernels/cpu/source/<op>.py.
    """
    name = "torch" if is_recording() else _chosen or "cpu"
    if name == "cpu" and name in implementations and like.device.type == "cpu" and like.dtype in KERNEL_DTYPES:
        compiled = implementations[name]
        if available(compiled.__module__.rpartition(".")[2]):
            return compiled
    return implementations["reference" if name == "reference" else "torch"]
