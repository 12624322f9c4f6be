"""Toeplitz positions of one or several dimensions (TPE, MD-TPE)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.errors import SeriatimError, check_size
from seriatim.core.mixer import state_dtype

__all__ = ["ToeplitzPositions"]


class ToeplitzPositions(nn.Module):
    r"""Tells tokens of a grid where they stand, by a causal convolution along each axis: features in, features out.

    .. math:: y_{n_1 \dots n_A} = \sum_{a=1}^{A} \sum_{m \le n_a} t^{(a)}_{n_a - m}\, x_{n_1 \dots m \dots n_A}, \quad
              t^{(a)}_j = \sum_{r=1}^{N} \alpha_r \beta_r \lambda_r^j, \quad \lambda_r = \exp(-e^{\gamma_r})

    with alpha, beta and gamma for each axis and feature. The Toeplitz matrices are those of small state space systems,
    so that each axis is one linear scan. It stands once, above the embedding of tokens or patches.

    Args:
        dim: features in and out.
        axes: A, dimensions of the grid.
        state_size: N, exponentials of each filter.

    Source: Qin et al., 2024, arXiv:2405.21022, section 4 (MD-TPE). Initialisation: alpha and beta standard normal, the
    decays spread evenly in their logarithm so that they forget over 1 to 100 tokens.
    """

    def __init__(self, dim: int, axes: int = 1, state_size: int = 4):
        super().__init__()
        check_size(dim=dim, axes=axes, state_size=state_size)
        self.dim, self.axes, self.state_size = dim, axes, state_size
        self.alpha = nn.Parameter(torch.randn(axes, dim, state_size))
        self.beta = nn.Parameter(torch.randn(axes, dim, state_size) / state_size)
        spread = torch.linspace(0.0, -4.6, state_size)  # exp(4.6) is about 100 tokens
        self.gamma = nn.Parameter(spread.expand(axes, dim, state_size).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, *sizes, dim) to the same, with as many sizes as there are axes."""
        if x.dim() != self.axes + 2 or x.size(-1) != self.dim:
            raise SeriatimError(f"x has shape {tuple(x.shape)}; it must be (batch, {self.axes} sizes, {self.dim})")
        return sum((self._along(axis, x) for axis in range(1, self.axes)), self._along(0, x))

    def _along(self, axis: int, x: Tensor) -> Tensor:
        lines = x.movedim(axis + 1, -2)
        each = lines.flatten(0, -3)
        decay = (-self.gamma[axis].to(state_dtype(x.dtype)).exp()).exp()
        h, _ = ops.diagonal_scan(decay, each[..., None] * self.beta[axis])
        y = (h * self.alpha[axis]).sum(-1).to(x.dtype)
        return y.view(lines.shape).movedim(-2, axis + 1)


def reference(m: ToeplitzPositions, x: Tensor) -> Tensor:
    """The sum over every axis, one sequence, place and feature at a time."""
    y = torch.zeros_like(x)
    for row, grid in enumerate(x):
        for place in _places(grid.shape[:-1]):
            for axis, last in enumerate(place):
                for position in range(last + 1):
                    other = (*place[:axis], position, *place[axis + 1 :])
                    decay = torch.exp(-torch.exp(m.gamma[axis])) ** (last - position)
                    y[(row, *place)] += (m.alpha[axis] * m.beta[axis] * decay).sum(-1) * grid[other]
    return y


def _places(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for size in sizes:
        places = [(*place, index) for place in places for index in range(size)]
    return places
