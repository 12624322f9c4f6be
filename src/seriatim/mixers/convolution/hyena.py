"""Hyena."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.derived import Derived
from seriatim.core.errors import SeriatimError, check_positive, check_size
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.short_conv import ShortConv
from seriatim.ops.precision import full_precision

__all__ = ["Hyena", "HyenaState"]

DECAYS = (1.5, 0.3)  # of the window, after which it has fallen to LEAST: the slowest and the fastest feature's
LEAST = 1e-2


class HyenaState(NamedTuple):
    """What is carried from segment to segment."""

    short: Tensor  # (B, conv_size - 1, (N + 1) D): the last inputs of the short convolution
    long: Tensor  # (B, N, filter_length - 1, D): the last inputs of the long ones


class Hyena(Mixer):
    r"""Hyena: long convolutions and gates by turns, with filters that a small network writes.

    .. math:: (x^1, \dots, x^N, z^1) = \mathrm{conv}(W_p u), \quad
              z^{n+1}_t = x^n_t \odot \Big( \sum_{i < L} h^n_i \odot z^n_{t-i} + b^n \odot z^n_t \Big), \quad
              y_t = W_o z^{N+1}_t

    .. math:: h_i = e^{-\alpha i / (L - 1)} \odot \mathrm{FFN}(i), \quad
              \mathrm{FFN} = W_4 \sin(f W_3 \sin(f W_2 \sin(f W_1\, \mathrm{features}(i))))

    Features of a place are i / (L - 1) and the cosines and sines of a few frequencies, up to (features - 3) / 2 turns
    over the filter; f is trained, the rates alpha of the window are not. Filters have L taps however long the sequence:
    what is carried is the last L - 1 inputs of each of the N convolutions.

    Args:
        dim: features in and out.
        order: N, convolutions and gates.
        filter_length: L, taps of the long filters.
        conv_size: taps of the short convolution.
        features: of a place; odd and at least 3.
        width: of the network.
        frequency: f, at first.

    Source: Poli et al., 2023, arXiv:2302.10866, section 3, algorithms 1 to 3; skips b and initialisation are its
    official code's, which leaves out the first of the N convolutions.
    """

    def __init__(
        self,
        dim: int,
        order: int = 2,
        filter_length: int = 1024,
        conv_size: int = 3,
        features: int = 33,
        width: int = 64,
        frequency: float = 14.0,
    ):
        super().__init__()
        check_size(dim=dim, order=order, filter_length=filter_length, features=features, width=width)
        check_positive(frequency=frequency)
        if features < 3 or features % 2 == 0:
            raise SeriatimError(f"features is {features}; it must be odd and at least 3: a place, cosines and sines")
        self.dim, self.order, self.filter_length, self.conv_size = dim, order, filter_length, conv_size
        self.features, self.width, self.frequency = features, width, frequency
        self.project = nn.Linear(dim, (order + 1) * dim)
        self.short = ShortConv((order + 1) * dim, conv_size)
        self.first = nn.Linear(features, width)
        self.second, self.third = nn.Linear(width, width), nn.Linear(width, width)
        self.sine = nn.Parameter(torch.full((width,), float(frequency)))
        self.last = nn.Linear(width, dim * order, bias=False)
        self.skip = nn.Parameter(torch.randn(order, dim))
        self.out = nn.Linear(dim, dim)

    def init_state(self, batch: int) -> HyenaState:
        short = self.new_state(batch, self.conv_size - 1, (self.order + 1) * self.dim)
        return HyenaState(short, self.new_state(batch, self.order, self.filter_length - 1, self.dim))

    def mix(
        self, x: Tensor, state: HyenaState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, HyenaState]:
        inputs, short = self.short(self.project(x), state.short, reset, lengths)
        *gates, z = inputs.chunk(self.order + 1, -1)
        tails = []
        (filters,) = _filters(self.filters)
        for n, (gate, kernel) in enumerate(zip(gates, filters, strict=True)):
            y, tail = ops.long_conv(z, kernel, state=state.long[:, n], reset=reset, lengths=lengths)
            z = gate * torch.addcmul(y, self.skip[n], z)
            tails.append(tail)
        return self.out(z), HyenaState(short, torch.stack(tails, 1))

    def filters(self) -> Tensor:
        """The long filters, (N, D, L): the first tap multiplies the present input."""
        wide, device = state_dtype(self.sine.dtype), self.sine.device
        length, bands = self.filter_length, (self.features - 1) // 2
        with full_precision(device):
            place = torch.linspace(0, 1, length, dtype=wide, device=device).unsqueeze(1)
            turn = torch.arange(length, dtype=wide, device=device).unsqueeze(1) * (2 * math.pi / length)
            turn = turn * torch.linspace(1e-4, bands - 1, bands, dtype=wide, device=device)
            z = torch.cat([place, turn.cos(), -turn.sin()], 1)
            for layer in (self.first, self.second, self.third):
                z = torch.sin(self.sine.to(wide) * F.linear(z, layer.weight.to(wide), layer.bias.to(wide)))
            slow, fast = (-math.log(LEAST) / decay for decay in DECAYS)
            rates = torch.linspace(slow, fast, self.dim * self.order, dtype=wide, device=device)
            h = F.linear(z, self.last.weight.to(wide)) * torch.exp(-rates * place)
        return h.mT.unflatten(0, (self.dim, self.order)).transpose(0, 1)


_filters: Derived[tuple[Tensor]] = Derived(lambda found: (found,))  # of mixers that are stepping


def reference(m: Hyena, x: Tensor) -> Tensor:
    """The paper's recurrence, one sequence, feature and token at a time."""
    filters = [[_tap(m, i, d) for i in range(min(m.filter_length, x.size(1)))] for d in range(m.dim)]
    rows = []
    for sequence in x:
        projected, after = sequence @ m.project.weight.mT + m.project.bias, list[Tensor]()
        for t in range(len(sequence)):
            total: Tensor = m.short.get_parameter("bias")
            for lag in range(min(m.conv_size, t + 1)):
                total = total + m.short.weight[:, m.conv_size - 1 - lag] * projected[t - lag]
            after.append(total)
        *gates, values = torch.stack(after).chunk(m.order + 1, 1)
        columns = []
        for d in range(m.dim):
            z = values[:, d]
            for n in range(m.order):
                y = []
                for t in range(len(z)):
                    taps = range(min(t + 1, m.filter_length))
                    total = sum(filters[d][i][n] * z[t - i] for i in taps) + m.skip[n, d] * z[t]
                    y.append(gates[n][t, d] * total)
                z = torch.stack(y)
            columns.append(z)
        rows.append(torch.stack(columns, 1) @ m.out.weight.mT + m.out.bias)
    return torch.stack(rows)


def _tap(m: Hyena, i: int, d: int) -> Tensor:
    """Tap i of the filters (N,) of feature d."""
    place, bands = i / max(m.filter_length - 1, 1), (m.features - 1) // 2
    turns = [
        (1e-4 + (bands - 1 - 1e-4) * b / max(bands - 1, 1)) * 2 * math.pi * i / m.filter_length for b in range(bands)
    ]
    z = m.sine.new_tensor([place, *map(math.cos, turns), *(-math.sin(turn) for turn in turns)])
    for layer in (m.first, m.second, m.third):
        z = torch.sin(m.sine * (layer.weight @ z + layer.bias))
    rows = range(d * m.order, (d + 1) * m.order)
    channels = m.dim * m.order
    share = torch.tensor([row / max(channels - 1, 1) for row in rows], dtype=z.dtype)
    slow, fast = math.log(100) / 1.5, math.log(100) / 0.3
    return (m.last.weight[list(rows)] @ z) * torch.exp(-(slow + (fast - slow) * share) * place)
