"""Errors a user can act on: each names the argument, the value it had and what would be accepted."""

import math
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "SeriatimError",
    "check_divisible",
    "check_layer",
    "check_number",
    "check_one_of",
    "check_positive",
    "check_size",
    "nearest",
]


class SeriatimError(ValueError):
    """A mistake in what was asked for; its message is one line meant for the person who asked."""


def nearest(name: str, options: Iterable[str]) -> list[str]:
    """All options, those that look like `name` first."""
    options = sorted(options)
    close = get_close_matches(name, options, n=3, cutoff=0.5)
    return close + [option for option in options if option not in close]


def check_one_of(argument: str, value: object, options: Iterable[str]) -> None:
    """Raises unless `value` is one of `options`."""
    options = list(options)
    if value not in options:
        raise SeriatimError(f"{argument} is {value!r}; it must be one of {', '.join(nearest(str(value), options))}")


def check_number(**values: float) -> None:
    """Raises unless every named value is a finite number."""
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise SeriatimError(f"{argument} is {value!r}; it must be a finite number")


def check_positive(**values: float) -> None:
    """Raises unless every named value is a finite number above zero."""
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise SeriatimError(f"{argument} is {value!r}; it must be a finite number above 0")


def check_size(**values: int) -> None:
    """Raises unless every named value is a whole number above zero."""
    for argument, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SeriatimError(f"{argument} is {value!r}; it must be a whole number above 0")


def check_divisible(**values: int) -> None:
    """`check_divisible(dim=64, heads=4)`: raises unless the first value is a multiple of the second."""
    (whole_name, whole), (part_name, part) = values.items()
    check_size(**values)
    if whole % part:
        raise SeriatimError(
            f"{whole_name} is {whole} and {part_name} is {part}; {whole_name} must be a multiple of {part_name}"
        )


def check_layer(layer: int, layers: int) -> None:
    """Raises unless `layer` counts one of so many layers, from 0."""
    check_size(layers=layers)
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < layers:
        raise SeriatimError(f"layer is {layer!r} and layers is {layers}; layer must be a whole number below it")
