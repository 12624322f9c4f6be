"""RWKV-6's time mixing."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_divisible, check_layer, check_size
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.pointwise import gated
from seriatim.nn.token_shift import token_shift

__all__ = ["RWKV6", "RWKV6State"]

EPSILON = 64e-5  # of the norm
STREAMS = 5  # decay, key, value, receptance, gate


class RWKV6State(NamedTuple):
    """What is carried from segment to segment."""

    last: Tensor  # (B, D): the last token
    memory: Tensor  # (B, H, K, K)


class RWKV6(Mixer):
    r"""RWKV-6 (Finch): a matrix memory with a decay that each token chooses, and a bonus for the present token.

    .. math:: S_t = \mathrm{diag}(e^{-e^{d_t}}) S_{t-1} + k_t v_t^\top, \quad
              o_t = (S_{t-1} + \mathrm{diag}(u)\, k_t v_t^\top)^\top r_t, \quad
              y_t = W_o (\mathrm{norm}(o_t) \odot \mathrm{silu}(g_t))

    for each head. Each of r, k, v and g is a matrix times, and d a small network
    :math:`\lambda + B_d \tanh(A_d \,\cdot)` of, a mixture of its own of the token with the one before it,

    .. math:: x_t + (x_{t-1} - x_t) \odot (\mu + B \tanh(A (x_t + (x_{t-1} - x_t) \odot \mu_x)))

    The norm is over each head. RWKV's channel mixing is not part of it: a stack has its feed-forward layers.

    Args:
        dim: features in and out.
        heads: memories; dim must be a multiple.
        mix_rank: between A and B.
        decay_rank: between A_d and B_d.
        layer: of this one in the model, from 0; the initial mu, lambda and u depend on the depth.
        layers: of the model.

    Source: Peng et al., 2024, arXiv:2404.05892, section 4 (equations 12 to 20); initialisation of its official code.
    """

    def __init__(
        self, dim: int, heads: int = 4, mix_rank: int = 32, decay_rank: int = 64, layer: int = 0, layers: int = 1
    ):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        check_size(mix_rank=mix_rank, decay_rank=decay_rank)
        check_layer(layer, layers)
        self.dim, self.heads, self.mix_rank, self.decay_rank = dim, heads, mix_rank, decay_rank
        self.layer, self.layers = layer, layers
        channel, depth, rising = torch.arange(dim), layer / max(layers - 1, 1), 1 - layer / layers
        share, place = (channel / dim) ** rising, channel / max(dim - 1, 1)
        swift = 1 - (channel / dim) ** (0.5 * rising)
        self.mix_all = nn.Parameter(1 - share)
        self.mix_each = nn.Parameter(torch.stack([1 - share, 1 - share, 1 - share - 0.3 * depth, swift, swift]))
        self.mix_down = nn.Linear(dim, STREAMS * mix_rank, bias=False)
        self.mix_up = nn.Parameter(torch.empty(STREAMS, mix_rank, dim).uniform_(-0.01, 0.01))
        self.decay = nn.Parameter(-6 + 5 * place ** (0.7 + 1.3 * depth))
        self.decay_down = nn.Linear(dim, decay_rank, bias=False)
        self.decay_up = nn.Linear(decay_rank, dim, bias=False)
        self.bonus = nn.Parameter(depth * (1 - place) + 0.1 * ((channel + 1) % 3 - 1))
        self.receptance, self.key, self.value, self.gate, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(5))
        self.norm_weight = nn.Parameter(torch.full((dim,), ((1 + layer) / layers) ** 0.7))
        self.norm_bias = nn.Parameter(torch.zeros(dim))
        nn.init.uniform_(self.decay_up.weight, -0.01, 0.01)
        for weight in (self.mix_down.weight, self.decay_down.weight, self.out.weight):
            nn.init.zeros_(weight)
        for projection, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0), (self.gate, 0.1)):
            nn.init.orthogonal_(projection.weight, gain)

    def init_state(self, batch: int) -> RWKV6State:
        width = self.dim // self.heads
        return RWKV6State(self.new_state(batch, self.dim), self.new_state(batch, self.heads, width, width))

    def mix(
        self, x: Tensor, state: RWKV6State, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, RWKV6State]:
        before, last = token_shift(x, state.last, reset, lengths)
        for_decay, for_key, for_value, for_receptance, for_gate = self._mixtures(x, before - x)
        r, k, v = self.receptance(for_receptance), self.key(for_key), self.value(for_value)
        d = self.decay_up(torch.tanh(self.decay_down(for_decay)))
        wide = state_dtype(self.decay.dtype)
        log_decay = -(d.to(wide) + self.decay.to(wide)).exp()
        r, k, v, log_decay = (z.unflatten(-1, (self.heads, -1)) for z in (r, k, v, log_decay))
        bonus = self.bonus.unflatten(-1, (self.heads, -1))
        own = (r * bonus * k).sum(-1, keepdim=True)
        if lengths is not None:  # a padded token neither writes nor fades
            real = ragged.real_tokens(lengths, x.size(1))
            k, log_decay = ragged.mask(k, real), ragged.mask(log_decay, real)
        o, memory = _read(r, k, v, own, log_decay, state.memory, reset)
        o = F.layer_norm(o, o.shape[-1:], eps=EPSILON).flatten(-2) * self.norm_weight + self.norm_bias
        return self.out(gated(o.to(x.dtype), self.gate(for_gate))), RWKV6State(last, memory)

    def _mixtures(self, x: Tensor, change: Tensor) -> tuple[Tensor, ...]:
        """One mixture (B, T, D) of token and predecessor for each stream."""
        low = torch.tanh(self.mix_down(torch.addcmul(x, change, self.mix_all)))
        parts = zip(low.chunk(STREAMS, -1), self.mix_up.to(low.dtype), self.mix_each, strict=True)
        return tuple(x + change * (part @ up + mu) for part, up, mu in parts)


@linear_in("v")
def _read(
    r: Tensor, k: Tensor, v: Tensor, own: Tensor, log_decay: Tensor, memory: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the memory answers before each token writes, and `own` (B, T, H, 1) times the token's own value."""
    past, memory = read_before(r, k, v, log_decay, memory, reset)
    return past + own * v, memory


def read_before(
    r: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, memory: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What the memory answers before each token writes, (B, T, H, V), and the memory after the last, (B, H, K, V).

    Each token first does what the one before it left to be done; what the last one leaves is done at the end.
    """
    if not k.size(1):
        return v, memory
    late_k, late_v, late_decay = (F.pad(z, (0, 0, 0, 0, 1, 0))[:, :-1] for z in (k, v, log_decay))
    if reset is not None:
        late_k = ragged.mask(late_k, ~reset)
    o, memory = ops.matrix_scan(r, late_k, late_v, late_decay, state=memory, reset=reset)
    k, v, decay = (z[:, -1].to(memory.dtype) for z in (k, v, log_decay))
    return o, torch.addcmul(decay.exp()[..., None] * memory, k[..., None], v[..., None, :])


def reference(m: RWKV6, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time."""
    width = m.dim // m.heads
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(width, width) for _ in range(m.heads)], []
        before = torch.zeros_like(sequence[0])
        for u in sequence:
            low = torch.tanh(m.mix_down.weight @ (u + (before - u) * m.mix_all))
            mixed = []
            for n in range(STREAMS):
                offset = m.mix_up[n].T @ low[n * m.mix_rank : (n + 1) * m.mix_rank]
                mixed.append(u + (before - u) * (m.mix_each[n] + offset))
            w = torch.exp(-torch.exp(m.decay + m.decay_up.weight @ torch.tanh(m.decay_down.weight @ mixed[0])))
            k, v, r = m.key.weight @ mixed[1], m.value.weight @ mixed[2], m.receptance.weight @ mixed[3]
            g, o = m.gate.weight @ mixed[4], []
            for h in range(m.heads):
                j = slice(h * width, (h + 1) * width)
                written = torch.outer(k[j], v[j])
                read = (memory[h] + torch.diag(m.bonus[j]) @ written).T @ r[j]
                memory[h] = torch.diag(w[j]) @ memory[h] + written
                o.append((read - read.mean()) / (read.var(correction=0) + EPSILON).sqrt())
            y = torch.cat(o) * m.norm_weight + m.norm_bias
            out.append(m.out.weight @ (y * g * torch.sigmoid(g)))
            before = u
        rows.append(torch.stack(out))
    return torch.stack(rows)
