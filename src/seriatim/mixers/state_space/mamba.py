"""Mamba."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import check_divisible, check_one_of, check_size
from seriatim.core.mixer import state_dtype
from seriatim.mixers.state_space.base import EIGENVALUES, SelectiveInputs, SelectiveMixer
from seriatim.nn.decay import step_size_bias
from seriatim.nn.head_linear import HeadLinear
from seriatim.nn.norms import RMSNorm
from seriatim.nn.pointwise import gated
from seriatim.nn.short_conv import ShortConv

__all__ = ["Mamba"]

SELECT_NORMS = ("none", "rms", "rms_unscaled")
SELECT_EPSILON = 1e-6


class Mamba(SelectiveMixer):
    r"""Mamba: a state space whose step size and ports depend on the token, so that it selects what to keep.

    .. math:: (u', z) = W_{in} x_t, \quad u = \mathrm{silu}(\mathrm{conv}(u')), \quad (\delta, B, C) = W_x u, \quad
              \Delta = \mathrm{softplus}(W_\Delta \delta + b_\Delta)

    .. math:: h_t = e^{\Delta A} h_{t-1} + \Delta B u, \quad y_t = W_{out} ((C^\top h_t + D u) \odot \mathrm{silu}(z))

    With `eigenvalues="signed"` the transition is 2 exp(Delta A) - 1 instead of exp(Delta A): its values lie in [-1, 1]
    instead of [0, 1], so that a token can turn the state over.

    With `select_norm`, delta, B and C are divided by their root mean squares before they are used, and with "rms" then
    multiplied by weights. With `heads`, each of so many equal parts of the channels has its own W_x and W_Delta.

    A is diagonal and begins at -1, ..., -N (S4D-Real); the step sizes begin log-uniform between 0.001 and 0.1.

    Args:
        dim: features in and out.
        state_size: N, state values a channel.
        expand: channels E = expand * dim.
        conv_size: taps of the short convolution.
        dt_rank: width through which the step size is projected; None is dim / 16, rounded up.
        eigenvalues: "positive" or "signed".
        heads: parts of the channels; expand * dim must be a multiple.
        select_norm: "none", "rms" or "rms_unscaled".

    Source: Gu and Dao, 2023, arXiv:2312.00752, algorithm 2, sections 3.4 and 3.6; initialisation of its official
        code. Eigenvalues: Grazzi et al., 2024, arXiv:2411.12537. Heads: Glorioso et al., 2024, arXiv:2405.16712.
        Norms: Lieber et al., 2024, arXiv:2403.19887, section 6.4; unscaled: Zuo et al., 2024, arXiv:2410.05355.
    """

    def __init__(
        self,
        dim: int,
        state_size: int = 16,
        expand: int = 2,
        conv_size: int = 4,
        dt_rank: int | None = None,
        eigenvalues: str = "positive",
        heads: int = 1,
        select_norm: str = "none",
    ):
        super().__init__()
        check_size(dim=dim, state_size=state_size, expand=expand, conv_size=conv_size)
        if dt_rank is not None:
            check_size(dt_rank=dt_rank)
        check_one_of("eigenvalues", eigenvalues, EIGENVALUES)
        check_divisible(inner=expand * dim, heads=heads)
        check_one_of("select_norm", select_norm, SELECT_NORMS)
        self.dim, self.state_size, self.expand, self.conv_size = dim, state_size, expand, conv_size
        self.dt_rank, self.eigenvalues, self.heads, self.select_norm = dt_rank, eigenvalues, heads, select_norm
        self.inner, self.rank = expand * dim, dt_rank or math.ceil(dim / 16)
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv = ShortConv(self.inner, conv_size)
        self.x_proj = HeadLinear(heads, self.inner // heads, self.rank + 2 * state_size)
        self.dt_proj = HeadLinear(heads, self.rank, self.inner // heads, bias=True)
        sizes = [] if select_norm == "none" else [self.rank, state_size, state_size]
        self.norms = nn.ModuleList(_norm(size, select_norm == "rms") for size in sizes)
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
        chosen = self.x_proj(u)
        if self.heads > 1:
            chosen = chosen.unflatten(-1, (self.heads, -1))
        parts = chosen.split([self.rank, self.state_size, self.state_size], -1)
        if self.norms:
            parts = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        delta, B, C = (part.flatten(-2) for part in parts) if self.heads > 1 else parts
        delta = self.dt_proj(delta)
        return SelectiveInputs(F.softplus(delta.to(state_dtype(delta.dtype))), B, C)

    def readout(self, y: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(gated(y, gate))


def _norm(dim: int, scaled: bool) -> nn.Module:
    return RMSNorm(dim, SELECT_EPSILON) if scaled else nn.RMSNorm(dim, SELECT_EPSILON, elementwise_affine=False)


def reference(m: Mamba, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time, every channel's system written out."""
    A, width = -torch.exp(m.A_log), m.inner // m.heads
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
            y, states = [], []
            for head in range(m.heads):
                i = slice(head * width, (head + 1) * width)
                W_x = m.x_proj.weight.chunk(m.heads)[head]
                parts = [_normed(m, part, at) for at, part in enumerate((W_x @ u[i]).split(_sizes(m)))]
                delta = torch.log1p(torch.exp(m.dt_proj.weight[i] @ parts[0] + m.dt_proj.bias[i]))
                transition = torch.exp(delta[:, None] * A[i])
                if m.eigenvalues == "signed":
                    transition = 2 * transition - 1
                states.append(transition * h[i] + torch.outer(delta * u[i], parts[1]))
                y.append(states[-1] @ parts[2] + m.D[i] * u[i])
            h = torch.cat(states)
            out.append(m.out_proj.weight @ (torch.cat(y) * z * torch.sigmoid(z)))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _sizes(m: Mamba) -> list[int]:
    return [m.rank, m.state_size, m.state_size]


def _normed(m: Mamba, part: Tensor, at: int) -> Tensor:
    if m.select_norm == "none":
        return part
    part = part / (part.square().mean() + SELECT_EPSILON).sqrt()
    weight = m.norms[at].weight
    return part * weight if isinstance(weight, Tensor) else part
