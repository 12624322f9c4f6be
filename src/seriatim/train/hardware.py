"""Where training runs and in which precision."""

from contextlib import AbstractContextManager, nullcontext

import torch

from seriatim.core.errors import SeriatimError

__all__ = ["autocast", "choose_device"]


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is a GPU where there is one. Raises SeriatimError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SeriatimError(f"device is {name!r}, which cannot be used here: {reason}") from error
    return device


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """The context in which the model runs: "float32", "bfloat16" (matrix products under autocast) or "auto"."""
    if precision == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if has_bfloat16 else "float32"
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
