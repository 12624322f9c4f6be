"""Griffin's recurrent block."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_divisible, check_size
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.short_conv import ShortConv

__all__ = ["RGLRU"]

SHARPNESS = 8.0  # c
FIRST_DECAYS = (0.9, 0.999)  # of a^c
CONV_VARIANCE = 0.01


class RGLRUState(NamedTuple):
    """What is carried from segment to segment."""

    tail: Tensor  # (B, conv_size - 1, width): the last inputs of the convolution
    hidden: Tensor  # (B, width)
    begun: Tensor  # (B,) bool: whether a token was read


class RGLRU(Mixer):
    r"""Real-gated linear recurrent unit (RG-LRU) behind a short convolution, times a gate: Griffin's recurrent block.

    .. math:: u = \mathrm{conv}(W_x x_t + b_x), \quad r = \sigma(W_a u + b_a), \quad i = \sigma(W_i u + b_i), \quad
              a = e^{-c\, \mathrm{softplus}(\Lambda)\, r}

    .. math:: h_t = a \odot h_{t-1} + \sqrt{1 - a^2} \odot (i \odot u), \quad
              y_t = W_o (h_t \odot \mathrm{gelu}(W_y x_t + b_y)) + b_o

    with c = 8, and W_a and W_i block diagonal, a block a head. The first token of a document has no past to make room
    for: there the square root is 1. gelu is its approximation by tanh, as in the public models.

    e^{-c softplus(Lambda)} begins uniform between 0.9 and 0.999, as the paper says; the official code draws
    e^{-softplus(Lambda)} from there.

    Args:
        dim: features in and out.
        heads: blocks of the gates; width must be a multiple.
        width: features of the recurrence; None is dim.
        conv_size: taps of the short convolution.

    Source: De et al., 2024, arXiv:2402.19427, sections 2.3 and 2.4 and appendix A; the first token, and the
        initialisation of the weights, after its official code.
    """

    def __init__(self, dim: int, heads: int = 4, width: int | None = None, conv_size: int = 4):
        super().__init__()
        inner = dim if width is None else width
        check_size(dim=dim, width=inner, conv_size=conv_size)
        check_divisible(width=inner, heads=heads)
        self.dim, self.heads, self.width, self.conv_size = dim, heads, width, conv_size
        self.inner, block = inner, inner // heads
        self.branches = nn.Linear(dim, 2 * inner)
        self.conv = ShortConv(inner, conv_size)
        self.gates = nn.Parameter(torch.randn(heads, block, 2 * block) * block**-0.5)
        self.gates_bias = nn.Parameter(torch.zeros(heads, 2 * block))
        decay = torch.empty(inner, dtype=torch.float64).uniform_(*FIRST_DECAYS)
        self.decay = nn.Parameter((-decay.log() / SHARPNESS).expm1().log().float())
        self.out = nn.Linear(inner, dim)
        nn.init.normal_(self.branches.weight, std=dim**-0.5)
        nn.init.normal_(self.out.weight, std=inner**-0.5)
        nn.init.normal_(self.conv.weight, std=(CONV_VARIANCE / conv_size) ** 0.5)
        for bias in (self.branches.bias, self.out.bias, self.conv.bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def init_state(self, batch: int) -> RGLRUState:
        hidden = self.new_state(batch, self.inner)
        tail = self.new_state(batch, self.conv_size - 1, self.inner)
        return RGLRUState(tail, hidden, torch.zeros(batch, dtype=torch.bool, device=hidden.device))

    def mix(
        self, x: Tensor, state: RGLRUState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, RGLRUState]:
        time = x.size(1)
        u, gate = self.branches(x).chunk(2, -1)
        u, tail = self.conv(u, state.tail, reset, lengths)
        log_decay, written = self.recurrence(u)
        first = ~state.begun[:, None] & (torch.arange(time, device=x.device) == 0)
        first = first if reset is None else first | reset
        decay, share = log_decay.exp(), -torch.expm1(2 * log_decay)
        # Where a gate is shut the root has no slope that a float could hold; what it is multiplied by is 0 there.
        share = share.clamp(min=torch.finfo(share.dtype).tiny).sqrt().masked_fill(first.unsqueeze(2), 1.0)
        written = share * written
        if lengths is not None:
            real = ragged.real_tokens(lengths, time)
            decay, written = ragged.mask(decay, real, 1.0), ragged.mask(written, real)
        h, hidden = ops.diagonal_scan(decay, written, state=state.hidden, reset=reset)
        begun = state.begun | (time > 0 if lengths is None else lengths > 0)
        return self.out(h.to(x.dtype) * F.gelu(gate, approximate="tanh")), RGLRUState(tail, hidden, begun)

    def recurrence(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms of the decays, and what is written before the normalisation, of u (B, T, width)."""
        gates = torch.einsum("bthk,hkj->bthj", u.unflatten(2, (self.heads, -1)), self.gates) + self.gates_bias
        wide = state_dtype(u.dtype)
        write, forget = (gate.flatten(2).to(wide).sigmoid() for gate in gates.chunk(2, -1))
        return -SHARPNESS * F.softplus(self.decay.to(wide)) * forget, write * u.to(wide)


def reference(m: RGLRU, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time."""
    assert m.conv.bias is not None
    block = m.inner // m.heads
    rows = []
    for sequence in x:
        h, out = x.new_zeros(m.inner), []
        recent = [x.new_zeros(m.inner) for _ in range(m.conv_size)]
        for t, token in enumerate(sequence):
            branch, gate = (m.branches.weight @ token + m.branches.bias).split(m.inner)
            recent = [*recent[1:], branch]
            u = m.conv.bias + sum(m.conv.weight[:, i] * recent[i] for i in range(m.conv_size))
            write, forget = [], []
            for j in range(m.heads):
                part = u[j * block : (j + 1) * block]
                i, r = (part @ m.gates[j] + m.gates_bias[j]).split(block)
                write.append(torch.sigmoid(i))
                forget.append(torch.sigmoid(r))
            a = torch.exp(-8 * torch.log1p(torch.exp(m.decay)) * torch.cat(forget))
            size = torch.ones_like(a) if t == 0 else torch.sqrt(1 - a**2)
            h = a * h + size * torch.cat(write) * u
            slope = (2 / torch.pi) ** 0.5
            gate = gate * 0.5 * (1 + torch.tanh(slope * (gate + 0.044715 * gate**3)))
            out.append(m.out.weight @ (h * gate) + m.out.bias)
        rows.append(torch.stack(out))
    return torch.stack(rows)
