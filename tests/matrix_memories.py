"""The ops on a matrix memory, each under every kind of decay, with random arguments for them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from agreement import normal
from seriatim.ops import delta_scan, dplr_scan, matrix_scan

__all__ = ["CASES", "FADING", "KINDS", "Case", "delta_arguments", "dplr_arguments", "matrix_arguments", "state_for"]

KINDS = ["none", "head", "key"]


def matrix_arguments(kind, seed, batch, time, heads=2, keys=3, values=2):
    """q, k, v and, for a kind with decay, log_decay: random leaves."""
    tensors = [normal(seed + index, batch, time, heads, size) for index, size in enumerate((keys, keys, values))]
    return [*tensors, *_decays(kind, seed, batch, time, heads, keys)]


def delta_arguments(kind, seed, batch, time, heads=2, keys=3, values=2, length=1.0):
    """q, k, v, beta and, for a kind with decay, log_decay: random leaves; keys of that length, beta from 0 to 2."""
    q, k, v = matrix_arguments("none", seed, batch, time, heads, keys, values)
    k = (length * torch.nn.functional.normalize(k, dim=-1)).detach().requires_grad_()
    beta = (2 * normal(seed + 4, batch, time, heads).sigmoid()).detach().requires_grad_()
    return [q, k, v, beta, *_decays(kind, seed, batch, time, heads, keys)]


def dplr_arguments(seed, batch, time, heads=2, keys=3, values=2, rate=1.0):
    """q, k, v, log_decay, read and write: random leaves. What is read is of length 1, and written is its opposite, each
    feature at a rate of its own from 0 to `rate`."""
    tensors = matrix_arguments("key", seed, batch, time, heads, keys, values)
    r, a = (normal(seed + index, batch, time, heads, keys).detach() for index in (4, 5))
    r = torch.nn.functional.normalize(r, dim=-1)
    return [*tensors, r.requires_grad_(), (-rate * a.sigmoid() * r).detach().requires_grad_()]


def state_for(seed, batch, heads=2, keys=3, values=2):
    """A random state."""
    return normal(seed + 9, batch, heads, keys, values)


def _decays(kind, seed, batch, time, heads, keys):
    if kind == "none":
        return []
    shape = (batch, time, heads) if kind == "head" else (batch, time, heads, keys)
    return [(-normal(seed + 3, *shape).abs()).detach().requires_grad_()]


class Case(NamedTuple):
    """An op, and what draws its arguments for (seed, batch, time, heads, keys, values, strength).

    strength: how much a token corrects what the memory holds, 1 for about all of it; decay: which argument it is.
    """

    op: Callable[..., Any]
    draw: Callable[..., list[Tensor]]
    decay: int | None


def _matrix(kind: str) -> Case:
    def draw(seed, batch, time, heads=2, keys=3, values=2, strength=1.0):
        return matrix_arguments(kind, seed, batch, time, heads, keys, values)

    return Case(matrix_scan, draw, None if kind == "none" else 3)


def _delta(kind: str) -> Case:
    def draw(*sizes, strength=1.0):
        return delta_arguments(kind, *sizes, length=strength)

    return Case(delta_scan, draw, None if kind == "none" else 4)


def _dplr(*sizes, strength=1.0):
    return dplr_arguments(*sizes, rate=strength)


CASES = {
    **{f"matrix-{kind}": _matrix(kind) for kind in KINDS},
    **{f"delta-{kind}": _delta(kind) for kind in KINDS},
    "dplr": Case(dplr_scan, _dplr, 3),
}
FADING = {name: case for name, case in CASES.items() if case.decay is not None}
