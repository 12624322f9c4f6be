r"""HiPPO matrices: continuous-time memories x' = A x + B u whose state holds coefficients of the past in polynomials.

All in float64: their eigenvalues are lost in less.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_divisible, check_positive, check_size

__all__ = ["NormalLowRank", "diagonal_start", "legendre_delay", "legs", "normal_blocks", "normal_low_rank"]

DIAGONAL_STARTS = ("legs", "lin", "inv")


class NormalLowRank(NamedTuple):
    r"""HiPPO-LegS in the basis of its normal part's eigenvectors: :math:`V^* A V = \Lambda - P P^*`, B = V^* B.

    Eigenvalues come in conjugate pairs; these are the N / 2 of positive imaginary part, in ascending order.
    """

    eigenvalues: Tensor  # (N / 2,) complex
    low_rank: Tensor  # (N / 2,) complex: P
    B: Tensor  # (N / 2,) complex
    vectors: Tensor  # (N, N / 2) complex: V


def legs(size: int) -> tuple[Tensor, Tensor]:
    r"""HiPPO-LegS, all of the past scaled to one interval: A (N, N) and B (N,).

    .. math:: A_{nk} = -\sqrt{(2n + 1)(2k + 1)} \;(n > k), \quad -(n + 1) \;(n = k), \quad 0 \;(n < k), \qquad
              B_n = \sqrt{2n + 1}

    Source: Gu et al., 2020, arXiv:2008.07669, theorem 2.
    """
    check_size(size=size)
    n = torch.arange(size, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    A = -(root[:, None] * root).tril(-1) - torch.diag(n + 1)
    return A, root


def legendre_delay(size: int, window: float = 1.0) -> tuple[Tensor, Tensor]:
    r"""The delay network of Legendre memory units, the last `window` of time: A (N, N) and B (N,).

    .. math:: A_{nk} = \frac{2n + 1}{\theta} \begin{cases} -1 & n < k \\ (-1)^{n - k + 1} & n \ge k \end{cases}, \qquad
              B_n = \frac{2n + 1}{\theta} (-1)^n

    Source: Voelker, Kajic and Eliasmith, 2019, "Legendre Memory Units", equation 2.
    """
    check_size(size=size)
    check_positive(window=window)
    n = torch.arange(size, dtype=torch.float64)
    sign = (-1.0) ** n
    lower = -(sign[:, None] * sign)
    rate = (2 * n + 1) / window
    A = rate[:, None] * torch.where(n[:, None] < n, -1.0, lower)
    return A, rate * sign


def normal_low_rank(size: int) -> NormalLowRank:
    r"""HiPPO-LegS as a normal matrix plus one of rank 1, in the basis where the normal one is diagonal.

    .. math:: A = S - P P^\top, \quad P_n = \sqrt{n + 1/2}, \quad S + S^\top = -I

    Source: Gu, Goel and Ré, 2021, arXiv:2111.00396, theorem 1 and appendix C.1.

    Raises:
        SeriatimError: size is odd.
    """
    if size % 2:
        raise SeriatimError(f"state_size is {size}; it must be even: eigenvalues come in conjugate pairs")
    A, B = legs(size)
    P = (torch.arange(size, dtype=torch.float64) + 0.5).sqrt()
    normal = A + P[:, None] * P
    skew = normal + 0.5 * torch.eye(size, dtype=torch.float64)  # S = -I / 2 + a skew matrix
    imaginary, vectors = torch.linalg.eigh(skew * -1j)
    positive = imaginary > 0
    vectors = vectors[:, positive]
    adjoint = vectors.mH
    eigenvalues = torch.complex(torch.full((size // 2,), -0.5, dtype=torch.float64), imaginary[positive])
    return NormalLowRank(eigenvalues, adjoint @ P.to(adjoint.dtype), adjoint @ B.to(adjoint.dtype), vectors)


def normal_blocks(size: int, blocks: int = 1) -> tuple[Tensor, Tensor]:
    """Several normal parts of HiPPO-LegS, a block each: eigenvalues (N / 2,) and eigenvectors (N, N / 2), complex128.

    Those of positive imaginary part; the others are their conjugates.
    Source: Smith, Warrington and Linderman, 2022, arXiv:2208.04933, section 4.3 and appendix B.

    Raises:
        SeriatimError: blocks does not divide size into even parts.
    """
    check_divisible(state_size=size, blocks=blocks)
    if size // blocks % 2:
        raise SeriatimError(
            f"state_size is {size} and blocks is {blocks}; state_size / blocks must be even: eigenvalues come in "
            "conjugate pairs"
        )
    block = normal_low_rank(size // blocks)
    return block.eigenvalues.repeat(blocks), torch.block_diag(*[block.vectors] * blocks)


def diagonal_start(name: str, size: int) -> Tensor:
    r"""The N / 2 eigenvalues of positive imaginary part with which a diagonal state space begins, complex128.

    "legs": those of :func:`normal_low_rank`; "lin": -1/2 + i pi n; "inv": -1/2 + i (N / pi) (N / (2n + 1) - 1).
    Source: Gu et al., 2022, arXiv:2206.11893, equations 8 and 9 and definition of S4D-LegS.

    Raises:
        SeriatimError: the name is none of them, or size is odd.
    """
    if name not in DIAGONAL_STARTS:
        raise SeriatimError(f"init is {name!r}; it must be one of {', '.join(DIAGONAL_STARTS)}")
    if name == "legs":
        return normal_low_rank(size).eigenvalues
    if size % 2:
        raise SeriatimError(f"state_size is {size}; it must be even: eigenvalues come in conjugate pairs")
    n = torch.arange(size // 2, dtype=torch.float64)
    imaginary = math.pi * n if name == "lin" else size / math.pi * (size / (2 * n + 1) - 1)
    return torch.complex(torch.full_like(n, -0.5), imaginary)
