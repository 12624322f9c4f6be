"""The list of wrong mixers, and how one enters it."""

from collections.abc import Callable

from seriatim.core.mixer import Mixer

__all__ = ["FAULTS", "seen_by"]

FAULTS: dict[type[Mixer], set[str]] = {}


def seen_by(*checks: str) -> Callable[[type[Mixer]], type[Mixer]]:
    """Enters a faulty mixer with the names of the checks that must fail on it."""

    def enter(cls: type[Mixer]) -> type[Mixer]:
        FAULTS[cls] = set(checks)
        return cls

    return enter
