"""Which bits: the schemes by name."""

from typing import NamedTuple

from seriatim.core.errors import check_one_of

__all__ = ["GROUP", "SCHEMES", "Scheme", "scheme_of"]

GROUP = 128  # neighbours in a row of weights of 4 bits that share a scale


class Scheme(NamedTuple):
    """Bits of weights and of what they are multiplied by; 16 leaves that in floating point."""

    weights: int
    activations: int


SCHEMES = {"w8a8": Scheme(8, 8), "w4a8": Scheme(4, 8), "w4a16": Scheme(4, 16)}


def scheme_of(name: str) -> Scheme:
    """The scheme of a name. Raises SeriatimError, naming those there are, where there is none."""
    check_one_of("scheme", name, SCHEMES)
    return SCHEMES[name]
