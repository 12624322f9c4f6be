"""What the figures were measured on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from seriatim import __version__
from seriatim.cli.processor import processor
from seriatim.ops.backend import BACKENDS

__all__ = ["cores", "describe"]


def describe() -> dict[str, Any]:
    """Processor, cores, versions, and the backend that our ops take here unless told otherwise."""
    backend = os.environ.get("SERIATIM_BACKEND") or ("cpu" if "cpu" in BACKENDS else "torch")
    return {
        "processor": processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "backend": backend,
        "seriatim": __version__,
        "torch": torch.__version__,
        "numba": _version("numba"),
        "Python": platform.python_version(),
        "system": platform.platform(),
    }


def cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
