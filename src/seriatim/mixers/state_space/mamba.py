"""Mamba."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_one_of, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.base import EIGENVALUES, SelectiveInputs, SelectiveMixer
from seriatim.nn.decay import step_size_bias
from seriatim.nn.pointwise import gated
from seriatim.nn.short_conv import ShortConv

__all__ = ["Mamba"]


class Mamba(SelectiveMixer):
    r"""Mamba: a state space whose step size and ports depend on the token, so that it selects what to keep.

    .. math:: (u', z) = W_{in} x_t, \quad u = \mathrm{silu}(\mathrm{conv}(u')), \quad (\delta, B, C) = W_x u, \quad
              \Delta = \mathrm{softplus}(W_\Delta \delta + b_\Delta)

    .. math:: h_t = e^{\Delta A} h_{t-1} + \Delta B u, \quad y_t = W_{out} ((C^\top h_t + D u) \odot \mathrm{silu}(z))

    With `eigenvalues="signed"` the transition is 2 exp(Delta A) - 1 instead of exp(Delta A): its values lie in [-1, 1]
    instead of [0, 1], so that a token can turn the state over.

    A is diagonal and begins at -1, ..., -N (S4D-Real); the step sizes begin log-uniform between 0.001 and 0.1.

    Args:
        dim: features in and out.
        state_size: N, state values a channel.
        expand: channels E = expand * dim.
        conv_size: taps of the short convolution.
        dt_rank: width through which the step size is projected; None is dim / 16, rounded up.
        eigenvalues: "positive" or "signed".

    Source: Gu and Dao, 2023, arXiv:2312.00752, algorithm 2, sections 3.4 and 3.6; initialisation of its official
        code. Eigenvalues: Grazzi et al., 2024, arXiv:2411.12537.
    """

    def __init__(
        self,
        dim: int,
        state_size: int = 16,
        expand: int = 2,
        conv_size: int = 4,
        dt_rank: int | None = None,
        eigenvalues: str = "positive",
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size, expand=expand, conv_size=conv_size)
        if dt_rank is not None:
            check_size(dt_rank=dt_rank)
        check_one_of("eigenvalues", eigenvalues, EIGENVALUES)
        self.dim, self.state_size, self.expand, self.conv_size = dim, state_size, expand, conv_size
        self.dt_rank, self.eigenvalues = dt_rank, eigenvalues
        self.inner, self.rank = expand * dim, dt_rank or math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv = ShortConv(self.inner, conv_size)
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner)
        self.A_log = nn.Parameter(torch.arange(1, state_size + 1, dtype=torch.float32).log().repeat(self.inner, 1))
        self.D = nn.Parameter(torch.ones(self.inner))
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        bound = self.rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step_size_bias(self.inner))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u, gate = self.in_proj(x).chunk(2, -1)
        return u, gate

    def select(self, u: Tensor) -> SelectiveInputs:
        delta, B, C = self.x_proj(u).split([self.rank, self.state_size, self.state_size], -1)
        delta = self.dt_proj(delta)
        return SelectiveInputs(F.softplus(delta.to(state_dtype(delta.dtype))), B, C)

    def readout(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(gated(y, gate))


def reference(m: Mamba, x: Tensor) -> Tensor:
    """The paper's equations, one sequence and token at a time, every channel's system written out."""
    A = -torch.exp(m.A_log)
    assert m.conv.bias is not None
    rows = []
    for sequence in x:
        h, out = x.new_zeros(m.inner, m.state_size), []
        recent = [x.new_zeros(m.inner) for _ in range(m.conv.size)]
        for token in sequence:
            channels, z = (m.in_proj.weight @ token).split(m.inner)
            recent = [*recent[1:], channels]
            u = m.conv.bias + sum(m.conv.weight[:, i] * recent[i] for i in range(m.conv.size))
            u = u * torch.sigmoid(u)
            low, B, C = (m.x_proj.weight @ u).split([m.rank, m.state_size, m.state_size])
            delta = torch.log1p(torch.exp(m.dt_proj.weight @ low + m.dt_proj.bias))
            transition = torch.exp(delta[:, None] * A)
            if m.eigenvalues == "signed":
                transition = 2 * transition - 1
            h = transition * h + torch.outer(delta * u, B)
            y = h @ C + m.D * u
            out.append(m.out_proj.weight @ (y * z * torch.sigmoid(z)))
        rows.append(torch.stack(out))
    return torch.stack(rows)
