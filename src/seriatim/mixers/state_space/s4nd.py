"""S4ND."""

import math
from collections.abc import Sequence
from itertools import islice, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_positive, check_size
from seriatim.core.mixer import Mixer
from seriatim.mixers.state_space.invariant_base import System, response
from seriatim.nn.diagonal_system import DiagonalSystem
from seriatim.nn.diagonal_system import reference as reference_system
from seriatim.nn.glu_output import GLUOutput
from seriatim.nn.lrpe import check_shape

__all__ = ["S4ND"]


class S4ND(Mixer):
    r"""S4ND: a state space along each axis of a grid; the kernel of the grid is the outer product of theirs.

    .. math:: K(i, j) = k_1(i)\, k_2(j), \quad y = K * u + D u, \quad z = \mathrm{GLU}(\mathrm{gelu}(y))

    for each feature, and so for any number of axes. Along an axis a system h' = A h + B u looks both ways, with one
    readout for each: :math:`k(i) = \mathrm{Re}(C A^i B)` where i is 0 or above, and
    :math:`\mathrm{Re}(C' A^{-i-1} B)` below. With `rank` r above 1, K is the mean of r such products.

    A grid is convolved by a Fourier transform over all axes at once. Where documents begin inside the sequence, each of
    which is a grid, the first axis is taken by itself, and its documents kept apart there.

    Args:
        dim: features in and out.
        shape: the sizes of all axes but the first, of data read row by row: [] for a sequence, [width] for an image,
            [height, width] for a film. The first axis is as long as it needs to be.
        state_size: real state values a feature and axis; even.
        rank: products that make up a kernel.
        init, discretization, step_min, step_max: of the diagonal systems, as of `s4d`.
        rate: steps between two neighbours in the grid, 1 as trained; 2 reads images of half the resolution.

    Source: Nguyen et al., 2022, arXiv:2210.06583, sections 3 and 4; that readouts look both ways, and
    `rank`, are its official code's.
    """

    causal = False

    def __init__(
        self,
        dim: int,
        shape: Sequence[int] = (),
        state_size: int = 64,
        rank: int = 1,
        init: str = "legs",
        discretization: str = "zoh",
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size, rank=rank)
        check_positive(rate=rate)
        check_shape(shape)
        self.dim, self.shape, self.state_size, self.rank, self.init = dim, list(shape), state_size, rank, init
        self.discretization, self.step_min, self.step_max, self.rate = discretization, step_min, step_max, rate
        self.axes = nn.ModuleList(
            DiagonalSystem(dim, 2 * rank, state_size, init, discretization, step_min, step_max)
            for _ in range(len(shape) + 1)
        )
        self.D = nn.Parameter(torch.randn(dim))
        self.out = GLUOutput(dim, dim)

    def init_state(self, batch: int) -> tuple[()]:
        return ()

    def mix(
        self, x: Tensor, state: tuple[()], reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, tuple[()]]:
        if x.numel() == 0:
            return x, state
        sizes = [math.ceil(x.size(1) / math.prod(self.shape)), *self.shape]
        kernels = [response(System(*axis(self.rate)), size) for axis, size in zip(self.axes, sizes, strict=True)]
        u = x.to(kernels[0].dtype)
        if reset is None:
            grid = F.pad(u, (0, 0, 0, math.prod(sizes) - x.size(1))).mT.unflatten(2, sizes)
            y = _convolved(grid, kernels).flatten(2).mT[:, : x.size(1)]
        else:
            y = self._documents(u, kernels, reset)
        return self.out(torch.addcmul(y, self.D, u).to(x.dtype)), state

    def _documents(self, u: Tensor, kernels: list[Tensor], reset: Tensor) -> Tensor:
        """Grids stacked along their first axis, each filled up to whole slabs of cells that share its index."""
        batch, time, dim = u.shape
        cells = math.prod(self.shape)
        positions = ragged.positions(reset, torch.zeros(batch, dtype=torch.long, device=u.device), time)
        slab = (positions % cells == 0).cumsum(1) - 1
        slabs = time if torch.compiler.is_compiling() else int(slab.max()) + 1  # a graph's sizes are known before
        place = (slab * cells + positions % cells).unsqueeze(2).expand_as(u)
        stacked = u.new_zeros(batch, slabs * cells, dim).scatter(1, place, u).view(batch, slabs, cells, dim)
        first = torch.zeros(batch, slabs + 1, dtype=torch.bool, device=u.device)
        begins = first.scatter(1, torch.where(positions == 0, slab, slabs), True)[:, :-1]
        begins, ends = (z.repeat_interleave(cells, 0) for z in (begins, F.pad(begins[:, 1:], (0, 1)).flip(1)))
        lines, total = stacked.transpose(1, 2).flatten(0, 1), torch.zeros_like(stacked)
        for r in range(self.rank):
            forward, backward = (kernel[:, r] for kernel in kernels[0].chunk(2, 1))
            after, _ = ops.long_conv(lines, forward, reset=begins)
            before, _ = ops.long_conv(lines.flip(1), F.pad(backward, (1, 0)), reset=ends)
            y = (after + before.flip(1)).unflatten(0, (batch, cells)).transpose(1, 2)
            if self.shape:
                grids = y.flatten(0, 1).mT.unflatten(2, self.shape)
                y = _convolved(grids, [kernel[:, r :: self.rank] for kernel in kernels[1:]]).flatten(2).mT
            total = total + y.view_as(total)
        return (total / self.rank).flatten(1, 2).gather(1, place)


def _convolved(grid: Tensor, kernels: list[Tensor]) -> Tensor:
    """Whole grids (B, D, L, ...) with the mean of outer products of kernels (D, 2 r, L), r of them to look back."""
    spectrum = torch.ones((), device=grid.device)
    for axis, kernel in enumerate(kernels):
        forward, backward = kernel.chunk(2, 1)
        circular = torch.cat([forward, backward.flip(2)], 2)  # one place ahead is the last
        each = torch.fft.rfft(circular) if axis == len(kernels) - 1 else torch.fft.fft(circular)
        spectrum = spectrum.unsqueeze(-1) * each.view(*each.shape[:2], *[1] * axis, -1)
    sizes = [kernel.size(2) for kernel in kernels]
    doubled, axes = [2 * size for size in sizes], tuple(range(2, 2 + len(sizes)))
    y = torch.fft.irfftn(torch.fft.rfftn(grid, doubled, axes) * spectrum.mean(1), doubled, axes)
    for axis, size in zip(axes, sizes, strict=True):
        y = y.narrow(axis, 0, size)
    return y


def reference(m: S4ND, x: Tensor) -> Tensor:
    """The sum over all cells of the grid for each cell, one sequence and feature at a time."""
    rows = []
    for sequence in x:
        places = list(islice(product(range(len(sequence)), *map(range, m.shape)), len(sequence)))
        columns = []
        for d in range(m.dim):
            kernels = [_kernel(axis, d, len(sequence), m) for axis in m.axes]
            y = []
            for t, u in enumerate(sequence[:, d]):
                total = m.D[d] * u
                for s, other in enumerate(sequence[:, d]):
                    kernel = torch.ones(m.rank, dtype=x.dtype)
                    for along, here, there in zip(kernels, places[t], places[s], strict=True):
                        kernel = kernel * along[here - there]
                    total = total + kernel.mean() * other
                y.append(total)
            columns.append(torch.stack(y))
        z = torch.stack(columns, 1)
        z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        a, b = (z @ m.out.linear.weight.mT + m.out.linear.bias).chunk(2, -1)
        rows.append(a * torch.sigmoid(b))
    return torch.stack(rows)


def _kernel(axis: Any, d: int, size: int, m: S4ND) -> dict[int, Tensor]:
    """The products' kernels (rank,) of a feature along an axis, for every distance."""
    A, B, C = reference_system(axis, d, m.rate)
    behind = {i: (C[: m.rank] * A**i * B).sum(1).real for i in range(size)}
    ahead = {-i - 1: (C[m.rank :] * A**i * B).sum(1).real for i in range(size)}
    return behind | ahead
