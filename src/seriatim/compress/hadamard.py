r"""Hadamard matrices, whose numbers are 1 and -1 and whose rows are orthogonal: rotations that spread outliers.

.. math:: H_{2n} = \begin{pmatrix} H_n & H_n \\ H_n & -H_n \end{pmatrix}

from :math:`H_1`, or from those that Paley made of the squares modulo a prime q: of size q + 1 where q = 3 mod 4, of
size 2 (q + 1) where q = 1 mod 4. Every matrix here is divided by the root of its size.
"""

import math
from functools import cache

import torch
from torch import Tensor, nn

__all__ = ["Rotation", "hadamard"]


def hadamard(size: int) -> Tensor:
    """An orthogonal (size, size) float64: one Hadamard matrix, or where none is known several along the diagonal."""
    first, second, blocks = _factors(size)
    return torch.block_diag(*[torch.kron(first, second)] * blocks)


class Rotation(nn.Module):
    """x H for the H of `hadamard(size)`, as two small products: H is a Kronecker product."""

    first: Tensor
    second: Tensor

    def __init__(self, size: int):
        super().__init__()
        first, second, self.blocks = _factors(size)
        self.register_buffer("first", first.mT.contiguous().float(), persistent=False)
        self.register_buffer("second", second.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) to the same."""
        parts = x.unflatten(-1, (self.blocks, self.first.size(0), self.second.size(0)))
        return (self.first.to(x.dtype) @ (parts @ self.second.to(x.dtype))).flatten(-3)


@cache
def _factors(size: int) -> tuple[Tensor, Tensor, int]:
    """Two matrices of about the same size whose Kronecker product stands so many times on the diagonal."""
    twos = (size & -size).bit_length() - 1
    odd = size >> twos
    base, blocks = torch.ones(1, 1, dtype=torch.float64), odd
    for power in range(2, twos + 1):
        found = _paley(odd << power) if odd > 1 else None
        if found is not None:
            base, twos, blocks = found, twos - power, 1
            break
    low = min(twos, round((twos + math.log2(len(base))) / 2))
    return torch.kron(base, _doubled(twos - low)), _doubled(low), blocks


def _doubled(times: int) -> Tensor:
    found = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(times):
        found = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / 2**0.5, found)
    return found


def _paley(size: int) -> Tensor | None:
    """Paley's matrix of that size, from the one prime that gives it, or None."""
    if _is_prime(size - 1) and size % 4 == 0:
        return (_bordered(size - 1, -1) + torch.eye(size, dtype=torch.float64)) / size**0.5
    half = size // 2
    if size % 4 == 0 and half % 4 == 2 and _is_prime(half - 1):
        core, identity = _bordered(half - 1, 1), torch.eye(half, dtype=torch.float64)
        signs = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        corner = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return (torch.kron(core, signs) + torch.kron(identity, corner)) / size**0.5
    return None


def _bordered(prime: int, sign: int) -> Tensor:
    """1 where i - j is a square modulo the prime, -1 where not, 0 where i = j; with a row of 1 and a column of sign."""
    squares = {i * i % prime for i in range(1, prime)}
    found = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    found[0, 1:], found[1:, 0] = 1, sign
    for i in range(prime):
        for j in range(prime):
            if i != j:
                found[i + 1, j + 1] = 1 if (i - j) % prime in squares else -1
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % i for i in range(2, math.isqrt(number) + 1))
