"""What a row of the benchmark is: a piece of work, who else does it, and how much faster ours should be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from seriatim.core.errors import SeriatimError

__all__ = ["NotAvailableError", "Pair", "Peer", "Target", "Work", "sizes"]


class NotAvailableError(SeriatimError):
    """What a row measures is not there; the message is the reason."""


class Peer(NamedTuple):
    """Who else does the work."""

    name: str
    packages: tuple[str, ...] = ()  # to install; none: it comes with PyTorch or with us


class Target(NamedTuple):
    """What must hold: the ratio to the peer's time, or the share of the measured peak, is at least this."""

    least: float
    of: str = "ratio"  # or "peak"

    def __str__(self) -> str:
        return f"{self.least:g}x" if self.of == "ratio" else f"{self.least:.0%} of peak"


@dataclass(frozen=True)
class Pair:
    """Both sides, built and ready.

    Attributes:
        ours, peer: do the work once.
        path: which of the peer's ways of doing it this is.
        compare: computes what both should agree on; None where the two are not the same function.
        tolerance: of the relative error between them.
        flops: operations of the work, as seriatim.cli.bench.counts counts them.
        least_flops: those that the recurrence itself asks for, token by token, where `flops` are a chunked form's.
        bytes: inputs read and outputs written once; 0 where that says nothing.
        parameters: ours and the peer's.
    """

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    path: str = ""
    compare: Callable[[], tuple[Sequence[Tensor], Sequence[Tensor]]] | None = None
    tolerance: float = 1e-3
    flops: float = 0.0
    least_flops: float | None = None
    bytes: float = 0.0
    parameters: tuple[int, int] | None = None


class Work(NamedTuple):
    """A row. `make` builds it, and raises NotAvailableError where our side is missing.

    `weight` is its part of a run's time, relative to other rows: a slow peer needs more for as many measurements.
    """

    name: str
    shape: str
    peer: Peer
    make: Callable[[], Pair]
    target: Target | None = None
    note: str = ""
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}, {self.shape}, against {self.peer.name}"


def sizes(**values: int) -> str:
    """`sizes(B=2, T=64)` is "B 2, T 64"."""
    return ", ".join(f"{name} {value}" for name, value in values.items())
