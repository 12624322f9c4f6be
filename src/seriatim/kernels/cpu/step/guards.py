"""What a program takes for granted about its module, and whether it still holds.

The recorded step has the module's plain attributes built in, and reads parameters where they lay. So a program is right
for as long as the same modules hold the same things and the same plain values, and nobody has hung a hook on them.
"""

from collections.abc import Iterator
from operator import getitem, is_
from typing import Any

from torch import Tensor, nn

__all__ = ["Guard"]

_PLAIN = (bool, int, float, str, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_INNARDS = vars(nn.Module()).keys() - {"training"}


class Guard:
    """A module as it was. Refers to all inside it, but not to the module itself."""

    def __init__(self, module: nn.Module):
        found = [(z, vars(z)) for z in module.modules()]
        self.hooks = [inside[name] for _, inside in found for name in _HOOKS]
        self.containers = [inside["_modules"] for _, inside in found] + [inside for _, inside in found]
        own = [z for _, inside in found for name, z in inside.items() if name not in _INNARDS]
        self.containers += [z for z in own if type(z) in (list, set, dict)]
        self.sizes = [*map(len, self.containers)]
        plain = [place for z, inside in found for place in _plain(z, inside)]
        self.places, self.names = [inside for inside, _ in plain], [name for _, name in plain]
        self.values = [*map(getitem, self.places, self.names)]
        held = [place for _, inside in found for place in _held(inside)]
        tensors = [(holder, key) for holder, key in held if isinstance(holder[key], Tensor)]
        others = [(holder, key) for holder, key in held if not isinstance(holder[key], Tensor)]
        self.holders, self.keys = [holder for holder, _ in others], [key for _, key in others]
        self.things = [*map(getitem, self.holders, self.keys)]
        self.homes, self.titles = [holder for holder, _ in tensors], [key for _, key in tensors]
        self.tensors = [*map(getitem, self.homes, self.titles)]  # held, so that no other can come to lie where they do
        self.addresses = [*map(Tensor.data_ptr, self.tensors)]

    def is_hooked(self) -> bool:
        """Whether somebody wants to see calls of modules."""
        return any(self.hooks)

    def holds(self) -> bool:
        """Whether the module is as it was, its tensors where they were, whatever values they have now."""
        try:
            return (
                not self.is_hooked()
                and [*map(Tensor.data_ptr, map(getitem, self.homes, self.titles))] == self.addresses
                and [*map(getitem, self.places, self.names)] == self.values
                and all(map(is_, map(getitem, self.holders, self.keys), self.things))
                and [*map(len, self.containers)] == self.sizes
            )
        except (KeyError, TypeError):  # something is gone, or no longer a tensor
            return False


def _is_plain(value: Any) -> bool:
    """Whether a value is data that can be compared and that only replacing it changes."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _plain(module: nn.Module, inside: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where plain values are held that may matter. What a linear layer does depends on its parameters alone."""
    if type(module) is not nn.Linear:
        yield from ((inside, name) for name, value in inside.items() if name not in _INNARDS and _is_plain(value))


def _held(inside: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Where children, parameters, buffers and all else are held that is told apart by what it is, not by its value."""
    for kind in ("_modules", "_parameters", "_buffers"):
        yield from ((inside[kind], name) for name in inside[kind])
    yield from ((inside, name) for name, value in inside.items() if name not in _INNARDS and not _is_plain(value))
