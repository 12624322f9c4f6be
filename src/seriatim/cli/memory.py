"""Refuses, before any of it is read, a prompt whose state would not fit the machine's memory."""

import os
from typing import TYPE_CHECKING

from seriatim.core.errors import SeriatimError

if TYPE_CHECKING:
    import torch

    from seriatim.core.mixer import Mixer
    from seriatim.core.state import State

__all__ = ["available_memory", "check_fits", "human"]


def available_memory(device: "torch.device") -> int:
    """Bytes that may still be taken: of a GPU's memory, or without swapping; 0 where the system does not say."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def check_fits(model: "Mixer", state: "State | None", read: int, write: int) -> None:
    """Raises SeriatimError where reading and writing so many tokens more would need more memory than there is.

    Only a growing state can. Reading makes a new state while the old one is still there: twice its size is needed.
    """
    from seriatim.core.state import nbytes
    from seriatim.decoding.growth import growth

    if model.constant_state:
        return
    grows = growth(model)
    needed = 2 * (grows.bytes(read + write) + (0 if state is None else nbytes(state)))
    available = available_memory(next(model.parameters()).device)
    if available and needed > available:
        raise SeriatimError(
            f"the prompt has {read:,} tokens and {write:,} are to be written; this model's state grows with each and "
            f"needs {human(needed)} of memory, {human(available)} are available; give a shorter prompt"
        )


def human(count: float) -> str:
    """Bytes in the unit a person would choose."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError
