"""The model of the processor's caches from which kernels take their block sizes.

A block is as large as it can be while what is used again and again with it stays in the cache it is meant for. Part of
the cache is left to what streams by.
"""

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["Caches", "caches", "largest_block"]

USABLE = 0.75  # of a cache: the rest is for what streams by


class Caches(NamedTuple):
    """Bytes of the first and second level data cache of one core."""

    first: int = 32 * 1024
    second: int = 512 * 1024


def largest_block(footprint: Callable[[int], int], cache_bytes: int, choices: tuple[int, ...]) -> int:
    """The largest choice whose footprint in bytes fits the usable part of a cache; the smallest if none does.

    `footprint` grows with its argument.
    """
    fitting = [choice for choice in choices if footprint(choice) <= USABLE * cache_bytes]
    return max(fitting, default=min(choices))


@cache
def caches() -> Caches:
    """This machine's, as Linux tells; elsewhere the smallest in use today."""
    found = dict(_sizes(Path("/sys/devices/system/cpu/cpu0/cache")))
    return Caches(found.get(1, Caches().first), found.get(2, Caches().second))


def _sizes(folder: Path) -> list[tuple[int, int]]:
    """(level, bytes) of every cache that holds data."""
    sizes = []
    for index in folder.glob("index*"):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KM])", size)
        if kind != "Instruction" and match:
            sizes.append((int(level), int(match[1]) * {"K": 1 << 10, "M": 1 << 20}[match[2]]))
    return sizes
