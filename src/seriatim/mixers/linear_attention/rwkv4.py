"""RWKV-4's time mixing."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_layer, check_size
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.nn.token_shift import token_shift

__all__ = ["RWKV4", "RWKV4State"]


class RWKV4State(NamedTuple):
    """What is carried from segment to segment. The maximum is a gauge: e^maximum times the sums is what counts."""

    last: Tensor  # (B, D): the last token
    maximum: Tensor  # (B, D), -inf before anything was read
    total: Tensor  # (B, D)
    weighted: Tensor  # (B, D)


class RWKV4(Mixer):
    r"""RWKV's time mixing: every channel averages its values, with weights that fade and a bonus for the present one.

    .. math:: wkv_t = \frac{\sum_{i < t} e^{-(t - 1 - i) w + k_i} v_i + e^{u + k_t} v_t}
                          {\sum_{i < t} e^{-(t - 1 - i) w + k_i} + e^{u + k_t}}, \quad
              y_t = W_o (\sigma(r_t) \odot wkv_t)

    for each channel, with :math:`w = e^{\omega}`, and r, k and v each a matrix times
    :math:`\mu \odot x_t + (1 - \mu) \odot x_{t-1}` with its own mu. The sums are kept divided by the largest of their
    terms, for keys of any size. RWKV's channel mixing is not part of it: a stack has its feed-forward layers.

    Args:
        dim: features in and out.
        layer: of this one in the model, from 0; the initial mu, w and u depend on the depth.
        layers: of the model.

    Source: Peng et al., 2023, arXiv:2305.13048, sections 3.1 and 3.2 and appendix D; initialisation of its official
        code.
    """

    def __init__(self, dim: int, layer: int = 0, layers: int = 1):
        super().__init__()
        check_size(dim=dim)
        check_layer(layer, layers)
        self.dim, self.layer, self.layers = dim, layer, layers
        channel, depth = torch.arange(dim), layer / max(layers - 1, 1)
        share, rising = channel / dim, 1 - layer / layers
        mix = [share**rising, share**rising + 0.3 * depth, share ** (0.5 * rising)]
        self.mix_key, self.mix_value, self.mix_receptance = (nn.Parameter(mu) for mu in mix)
        self.decay_log = nn.Parameter(-5 + 8 * (channel / max(dim - 1, 1)) ** (0.7 + 1.3 * depth))
        self.bonus = nn.Parameter(math.log(0.3) + 0.5 * ((channel + 1) % 3 - 1))
        self.key, self.value, self.receptance, self.out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        nn.init.orthogonal_(self.value.weight)
        for zero in (self.key, self.receptance, self.out):
            nn.init.zeros_(zero.weight)

    def init_state(self, batch: int) -> RWKV4State:
        last, total, weighted = (self.new_state(batch, self.dim) for _ in range(3))
        return RWKV4State(last, self.new_state(batch, self.dim, fill=float("-inf")), total, weighted)

    def mix(
        self, x: Tensor, state: RWKV4State, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, RWKV4State]:
        before, last = token_shift(x, state.last, reset, lengths)
        k = self.key(torch.lerp(before, x, self.mix_key))
        v = self.value(torch.lerp(before, x, self.mix_value))
        r = self.receptance(torch.lerp(before, x, self.mix_receptance))
        wkv, state = self._average(k, v, state, reset, lengths)
        return self.out(torch.sigmoid(r) * wkv.to(r.dtype)), state._replace(last=last)

    @linear_in("v", shared=False)
    def _average(
        self, k: Tensor, v: Tensor, state: RWKV4State, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, RWKV4State]:
        wide = state_dtype(self.bonus.dtype)
        k, v = k.to(wide), v.to(wide)
        written, rate = k, -self.decay_log.to(wide).exp().expand(k.shape)
        if lengths is not None:  # a padded token neither writes nor fades
            real = ragged.real_tokens(lengths, k.size(1))
            written, rate = ragged.mask(k, real, float("-inf")), ragged.mask(rate, real)
        m, maximum = ops.max_scan(rate, written, state=state.maximum, reset=reset)
        finite = _finite(m)
        m_before = _before(state.maximum, m, reset, float("-inf"))
        fade, write = (rate + (m_before - finite)).exp(), (written - finite).exp()
        total, last_total = ops.diagonal_scan(fade, write, state=state.total, reset=reset)
        weighted, last_weighted = ops.diagonal_scan(fade, write * v, state=state.weighted, reset=reset)
        now = k + self.bonus.to(wide)
        largest = torch.maximum(m_before, now).detach()
        past, present = (m_before - largest).exp(), (now - largest).exp()
        above = past * _before(state.weighted, weighted, reset, 0.0) + present * v
        below = past * _before(state.total, total, reset, 0.0) + present
        return above / below, RWKV4State(state.last, maximum, last_total, last_weighted)


def _before(first: Tensor, sums: Tensor, reset: Tensor | None, empty: float) -> Tensor:
    """What each token finds: `first` (B, D) and then the sums (B, T, D) but the last; `empty` at a reset."""
    found = torch.cat([first[:, None], sums], 1)[:, : sums.size(1)]
    return found if reset is None else found.masked_fill(reset[..., None], empty)


def _finite(m: Tensor) -> Tensor:
    """The least number where m is -inf: never (-inf) - (-inf)."""
    return m.clamp(min=torch.finfo(m.dtype).min)


def reference(m: RWKV4, x: Tensor) -> Tensor:
    """The paper's sums, one sequence, token and channel at a time, all of the past anew for every token."""
    w = m.decay_log.exp()
    rows = []
    for sequence in x:
        before = torch.cat([torch.zeros_like(sequence[:1]), sequence[:-1]])
        k, v, r = (
            (mu * sequence + (1 - mu) * before) @ layer.weight.T
            for mu, layer in ((m.mix_key, m.key), (m.mix_value, m.value), (m.mix_receptance, m.receptance))
        )
        out = []
        for t in range(len(sequence)):
            wkv = []
            for c in range(m.dim):
                exponents = [-(t - 1 - i) * w[c] + k[i, c] for i in range(t)] + [m.bonus[c] + k[t, c]]
                weights = torch.stack(exponents).exp()
                wkv.append(weights @ v[: t + 1, c] / weights.sum())
            out.append(m.out.weight @ (torch.sigmoid(r[t]) * torch.stack(wkv)))
        rows.append(torch.stack(out))
    return torch.stack(rows)
