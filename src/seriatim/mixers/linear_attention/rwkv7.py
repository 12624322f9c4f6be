"""RWKV-7's time mixing."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_divisible, check_layer, check_size
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.norms import l2_norm
from seriatim.nn.token_shift import token_shift

__all__ = ["RWKV7", "RWKV7State"]

EPSILON = 64e-5  # of the norm
SLOWEST = math.exp(-0.5)  # the largest rate of decay
SMALL = 1e-12  # beside the square of a key's length


class RWKV7State(NamedTuple):
    """What is carried from segment to segment."""

    last: Tensor  # (B, D): the last token
    memory: Tensor  # (B, H, K, K)


class LowRank(nn.Module):
    r""":math:`B f(A x)`. A begins as zeros, B orthogonal and small."""

    def __init__(self, dim: int, rank: int):
        super().__init__()
        self.down, self.up = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)
        nn.init.zeros_(self.down.weight)
        nn.init.orthogonal_(self.up.weight, 0.1 * max(1.0, rank / dim) ** 0.5)


class RWKV7(Mixer):
    r"""RWKV-7 (Goose): a matrix memory from which each token removes what lies under one key and writes under another.

    .. math:: S_t = S_{t-1} (\mathrm{diag}(w_t) - \hat\kappa_t^\top (a_t \odot \hat\kappa_t)) + v_t^\top \tilde k_t

    .. math:: y_t = W_o\, (g_t \odot (\mathrm{norm}(r_t S_t^\top) + (r_t \cdot (\rho \odot \tilde k_t))\, v_t))

    .. math:: \hat\kappa_t = \frac{k_t \odot \xi}{|k_t \odot \xi|}, \quad
              \tilde k_t = k_t \odot (1 + (a_t - 1) \odot \alpha), \quad
              w_t = e^{-e^{-1/2} \sigma(\lambda + B_w \tanh(A_w\, \cdot))}, \quad
              a_t = \sigma(\lambda_a + B_a A_a\, \cdot), \quad g_t = B_g \sigma(A_g\, \cdot)

    for each head, S (value x key) there; r, k and v are matrices times, and w, a and g small networks of, mixtures of
    their own of the token with the one before it, :math:`x_t + (x_{t-1} - x_t) \odot \mu`. The norm is over each head.

    It is the paper's first layer wherever it stands. Later layers of the paper's models mix their values with those of
    the first, which a mixer, that sees its own input alone, does not have. RWKV's channel mixing is not part of it
    either: a stack has its feed-forward layers.

    Args:
        dim: features in and out.
        heads: memories; dim must be a multiple.
        decay_rank: between A_w and B_w; None is the official code's, 2.5 sqrt(dim) to the nearest 32, at least 32.
        rate_rank: between A_a and B_a; None is the same.
        gate_rank: between A_g and B_g; None is the same with 5 sqrt(dim).
        layer: of this one in the model, from 0; the initial mu, lambda and the norm's weight depend on the depth.
        layers: of the model.

    Source: Peng et al., 2025, arXiv:2503.14456, section 4; initialisation and ranks of its official code.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        decay_rank: int | None = None,
        rate_rank: int | None = None,
        gate_rank: int | None = None,
        layer: int = 0,
        layers: int = 1,
    ):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        check_layer(layer, layers)
        ranks = {"decay_rank": decay_rank, "rate_rank": rate_rank, "gate_rank": gate_rank}
        check_size(**{name: rank for name, rank in ranks.items() if rank is not None})
        self.dim, self.heads, self.layer, self.layers = dim, heads, layer, layers
        self.decay_rank, self.rate_rank, self.gate_rank = decay_rank, rate_rank, gate_rank
        channel, depth, rising = torch.arange(dim), layer / max(layers - 1, 1), 1 - layer / layers
        share, place, half = channel / dim, channel / max(dim - 1, 1), max(dim // heads - 1, 1) / 2
        zigzag = (channel % (dim // heads) - (dim // heads - 1) / 2) / half
        zigzag = zigzag * zigzag.abs()
        powers = (0.2, 0.9, 0.7, 0.7, 0.9, 0.2)  # receptance, decay, key, value, rate, gate
        self.mixes = nn.Parameter(torch.stack([1 - share ** (power * rising) for power in powers]))
        self.decay = nn.Parameter(-5.5 + 6 * place ** (1 + depth**0.3) + 2.5 * zigzag)
        self.rate = nn.Parameter(-0.19 + 0.3 * zigzag + 0.4 * (place - 0.5))
        self.decay_network = LowRank(dim, decay_rank or _suggested(2.5, dim))
        self.rate_network = LowRank(dim, rate_rank or _suggested(2.5, dim))
        self.gate_network = LowRank(dim, gate_rank or _suggested(5, dim))
        self.removal = nn.Parameter(0.71 - 0.1 * (place - 0.5))
        self.replacement = nn.Parameter(torch.full((dim,), 1.02))
        self.bonus = nn.Parameter(torch.full((dim,), -0.04))
        self.receptance, self.key, self.value, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.norm_weight = nn.Parameter(torch.full((dim,), ((1 + layer) / layers) ** 0.7))
        self.norm_bias = nn.Parameter(torch.zeros(dim))
        for projection, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
            nn.init.orthogonal_(projection.weight, gain)
        nn.init.zeros_(self.out.weight)

    def init_state(self, batch: int) -> RWKV7State:
        width = self.dim // self.heads
        return RWKV7State(self.new_state(batch, self.dim), self.new_state(batch, self.heads, width, width))

    def mix(
        self, x: Tensor, state: RWKV7State, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, RWKV7State]:
        before, last = token_shift(x, state.last, reset, lengths)
        change = before - x
        for_r, for_decay, for_k, for_v, for_rate, for_gate = (torch.addcmul(x, change, mu) for mu in self.mixes)
        r, k, v = self.receptance(for_r), self.key(for_k), self.value(for_v)
        network = self.decay_network
        decay = network.up(torch.tanh(network.down(for_decay)))
        wide = state_dtype(decay.dtype)
        log_decay = -SLOWEST * torch.sigmoid(decay.to(wide) + self.decay.to(wide))
        rate = torch.sigmoid(self.rate + self.rate_network.up(self.rate_network.down(for_rate)))
        gate = self.gate_network.up(torch.sigmoid(self.gate_network.down(for_gate)))
        removed = l2_norm((k * self.removal).unflatten(-1, (self.heads, -1)), SMALL)
        k = torch.addcmul(k, k * (rate - 1), self.replacement)
        r, k, v, log_decay, rate, bonus = (
            z.unflatten(-1, (self.heads, -1)) for z in (r, k, v, log_decay, rate, self.bonus)
        )
        now = (r * bonus * k).sum(-1, keepdim=True) * v
        write = rate * removed
        if lengths is not None:  # a padded token neither writes nor fades
            real = ragged.real_tokens(lengths, x.size(1))
            k, write, log_decay = (ragged.mask(z, real) for z in (k, write, log_decay))
        o, memory = ops.dplr_scan(r, k, v, log_decay, -removed, write, state=state.memory, reset=reset)
        o = F.layer_norm(o, o.shape[-1:], eps=EPSILON).flatten(-2) * self.norm_weight + self.norm_bias
        return self.out((o + now.flatten(-2)).to(x.dtype) * gate), RWKV7State(last, memory)


def _suggested(factor: float, dim: int) -> int:
    """The official code's width of a small network."""
    return max(32, 32 * round(factor * dim**0.5 / 32))


def reference(m: RWKV7, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time."""
    width = m.dim // m.heads
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(width, width) for _ in range(m.heads)], []
        before = torch.zeros_like(sequence[0])
        for u in sequence:
            for_r, for_w, for_k, for_v, for_a, for_g = (u + (before - u) * mu for mu in m.mixes)
            r, k, v = m.receptance.weight @ for_r, m.key.weight @ for_k, m.value.weight @ for_v
            d = m.decay + m.decay_network.up.weight @ torch.tanh(m.decay_network.down.weight @ for_w)
            w = torch.exp(-torch.exp(x.new_tensor(-0.5)) * torch.sigmoid(d))
            a = torch.sigmoid(m.rate + m.rate_network.up.weight @ (m.rate_network.down.weight @ for_a))
            g, o = m.gate_network.up.weight @ torch.sigmoid(m.gate_network.down.weight @ for_g), []
            for h in range(m.heads):
                j = slice(h * width, (h + 1) * width)
                kappa = k[j] * m.removal[j]
                kappa = kappa / (kappa @ kappa + 1e-12).sqrt()
                key = k[j] * (1 + (a[j] - 1) * m.replacement[j])
                transition = torch.diag(w[j]) - torch.outer(kappa, a[j] * kappa)
                memory[h] = memory[h] @ transition + torch.outer(v[j], key)
                read = memory[h] @ r[j]
                normal = (read - read.mean()) / (read.var(correction=0) + EPSILON).sqrt()
                o.append(normal * m.norm_weight[j] + m.norm_bias[j] + (r[j] @ (m.bonus[j] * key)) * v[j])
            out.append(m.out.weight @ (torch.cat(o) * g))
            before = u
        rows.append(torch.stack(out))
    return torch.stack(rows)
