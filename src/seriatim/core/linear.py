"""Where the library is linear: functions that say in which argument, and a watcher that sees what they do to it.

    with linear.watch() as readings:
        mixer(x)
    readings[0].read            # a linear function of readings[0].values, all else as it was

Nothing is watched, and nothing costs anything, outside such a block.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import NamedTuple, ParamSpec, TypeVar

from torch import Tensor

__all__ = ["Reading", "linear_in", "watch"]

P = ParamSpec("P")
R = TypeVar("R")


class Reading(NamedTuple):
    """One call of a function that is linear in its values.

    Attributes:
        name: of the function.
        values: (B, T, *features), what was read, as a tensor that nothing but this reading depends on.
        read: (B, T, *features), what it made of them.
        shared: whether all features of the last dimension are read alike; else each is read in its own way.
    """

    name: str
    values: Tensor
    read: Tensor
    shared: bool


_watching: list[list[Reading]] = []  # innermost last; empty but inside `watch`


@contextmanager
def watch() -> Iterator[list[Reading]]:
    """Collects the calls, in their order. Where one such function calls another, only the outer call counts."""
    found: list[Reading] = []
    _watching.append(found)
    try:
        yield found
    finally:
        _watching[:] = [other for other in _watching if other is not found]


def linear_in(argument: str, *, shared: bool = True) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Declares that a function's result, or the first of its results, is linear in the argument of that name.

    Args:
        argument: a tensor (B, T, *features).
        shared: whether all features of the last dimension are read alike.
    """

    def declare(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def watched(*args: P.args, **kwargs: P.kwargs) -> R:
            if not _watching:
                return function(*args, **kwargs)
            bound = signature.bind(*args, **kwargs)
            given: Tensor = bound.arguments[argument]
            values = given.view_as(given) if given.requires_grad else given.detach().requires_grad_()
            bound.arguments[argument] = values
            watchers, _watching[:] = list(_watching), []
            try:
                result = function(*bound.args, **bound.kwargs)
            finally:
                _watching[:] = watchers
            read = result[0] if isinstance(result, tuple) else result
            assert isinstance(read, Tensor)
            watchers[-1].append(Reading(function.__name__.strip("_"), values, read, shared))
            return result

        return watched

    return declare
