"""Where training runs and in which precision."""

import os
import shutil
from contextlib import AbstractContextManager, nullcontext

import torch

from seriatim.core.errors import SeriatimError

__all__ = ["autocast", "check_compiler", "choose_device", "multiplies_bfloat16"]


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is a GPU where there is one. Raises SeriatimError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SeriatimError(f"device is {name!r}, which cannot be used here: {reason}") from error
    return device


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which a model trains: "float32", "bfloat16" (matrix products under autocast), or "auto", which is
    bfloat16 where `multiplies_bfloat16`."""
    if precision == "float32" or (precision == "auto" and not multiplies_bfloat16(device)):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has matrix units for bfloat16: GPUs since Ampere, CPUs with AMX.

    On two cores with AMX, training language models of 2 to 3 million weights under autocast ran 1.2 (Mamba) to 2 times
    (attention) as fast as in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", bool)  # absent from some versions: then False
    return device.type == "cpu" and has_tiles()


def check_compiler(device: torch.device) -> None:
    """Raises SeriatimError where torch.compile would look for a C++ compiler and find none."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if device.type == "cpu" and not any(map(shutil.which, wanted)):
        raise SeriatimError(
            f"compile is true, which needs a C++ compiler on the CPU; no {' or '.join(wanted)} was found"
        )
