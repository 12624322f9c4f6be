"""Mamba-2 that has forgotten all but the last tokens."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.backbones.mitigated_base import MitigatedMamba2
from seriatim.core import ragged
from seriatim.core.build import Spec
from seriatim.core.errors import check_size
from seriatim.core.linear import linear_in
from seriatim.mixers.state_space import mamba2
from seriatim.mixers.state_space.base import dual_scan

__all__ = ["StateWindow", "WindowState"]


class WindowState(NamedTuple):
    """The two states whose difference is read, and what the later one has and the earlier one has not yet seen."""

    now: Tensor  # (B, H, N, P), h_t
    before: Tensor  # (B, H, N, P), h_{t-r}
    u: Tensor  # (B, r, H, P), of the last r tokens
    step: Tensor  # (B, r, H)
    B: Tensor  # (B, r, G, N)


class StateWindow(MitigatedMamba2):
    r"""Mamba-2 read through a sliding window of r tokens, as the difference of two states.

    .. math:: h^{(r)}_t = h_t - \alpha_{t-r+1} \cdots \alpha_t\, h_{t-r}
              = \sum_{i=t-r+1}^{t} \alpha_{i+1} \cdots \alpha_t\, \Delta_i B_i u_i^\top

    A linear state forgets exactly, so the difference holds the last r tokens and nothing else (the layer's convolution
    aside): time is that of two scans, whatever r is. What the state keeps to advance h_{t-r} grows with r. Trained
    weights go into it by :func:`seriatim.backbones.mitigated_base.mitigate`.

    Args:
        dim: features in and out.
        inner: the spec of a `mamba2`; it gets `dim`.
        size: r, tokens.

    Source: Chen et al., 2024, arXiv:2410.07145, "sliding window by state difference".
    """

    def __init__(self, dim: int, inner: Spec = "mamba2", size: int = 512):
        super().__init__()
        check_size(size=size)
        self.size = size
        self.set_inner(dim, inner)

    def init_system(self, batch: int) -> WindowState:
        m, system = self.mamba, self.mamba.init_state(batch).system
        u = self.new_state(batch, self.size, m.heads, m.width)
        step = self.new_state(batch, self.size, m.heads)
        return WindowState(system, system.clone(), u, step, self.new_state(batch, self.size, m.groups, m.state_size))

    @linear_in("u")
    def scan(
        self,
        u: Tensor,
        step: Tensor,
        B: Tensor,
        C: Tensor,
        system: WindowState,
        reset: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, WindowState]:
        time, decay = u.size(1), self.mamba.decay
        y, now = dual_scan(u, step, decay.log_decay(step), B, C, system.now, reset)
        seen = [torch.cat([old.to(new.dtype), new], 1) for old, new in zip(system[2:], (u, step, B), strict=True)]
        late_u, late_step, late_B = (each[:, :time] for each in seen)  # each token r tokens later
        late_reset = None if reset is None else F.pad(reset, (self.size, 0))[:, :time]
        if lengths is not None:
            real = ragged.real_tokens(lengths, time)
            late_step = ragged.mask(late_step, real)
            late_reset = None if late_reset is None else late_reset & real
        late, before = dual_scan(late_u, late_step, decay.log_decay(late_step), late_B, C, system.before, late_reset)
        faded = _window_sums(decay.log_decay(seen[1]), self.size)[:, 1:].exp()  # over the window that ends here
        if reset is not None:  # what stands before a reset is not in h_t
            faded = ragged.mask(faded, self._windows_with(reset)[:, 1:] == 0)
        y = y - faded.unsqueeze(-1).to(y.dtype) * late
        return self.mamba.skip(y, u), self._keep(WindowState(now, before, *seen), reset, lengths)

    def _windows_with(self, reset: Tensor) -> Tensor:
        """(B, T + 1): how many resets the window before the first token, and that up to each token, has."""
        return _window_sums(F.pad(reset, (self.size, 0)), self.size)

    def _keep(self, state: WindowState, reset: Tensor | None, lengths: Tensor | None) -> WindowState:
        """Of all tokens seen the last r of the document that the state is in; h_{t-r} where it is of that document."""
        time = state.step.size(1) - self.size
        if reset is None and lengths is None:
            return WindowState(
                state.now, state.before, *(z[:, time:].to(state.now.dtype, copy=True) for z in state[2:])
            )
        ends = state.step.new_full((state.step.size(0),), time, dtype=torch.long) if lengths is None else lengths
        places = ends.long()[:, None] + torch.arange(self.size, device=ends.device)
        rows = torch.arange(places.size(0), device=ends.device)
        kept = [each[rows[:, None], places].to(state.now.dtype) for each in state[2:]]
        if reset is None:
            return WindowState(state.now, state.before, *kept)
        count = F.pad(reset, (self.size, 0)).long().cumsum(1)[rows[:, None], places]
        kept = [ragged.mask(each, count == count[:, -1:]) for each in kept]
        forgotten = self._windows_with(reset)[rows, ends.long()] > 0
        return WindowState(state.now, state.before.masked_fill(forgotten[:, None, None, None], 0), *kept)


def _window_sums(values: Tensor, size: int) -> Tensor:
    """(B, r + T, ...) to (B, T + 1, ...): the sums of every r tokens that stand side by side.

    Of many they are differences, taken in float64.
    """
    if values.size(1) == size + 1:  # one token
        return torch.stack([values[:, :-1].sum(1), values[:, 1:].sum(1)], 1)
    sums = values.double().cumsum(1)
    sums = torch.cat([torch.zeros_like(sums[:, :1]), sums], 1)
    return sums[:, size:] - sums[:, :-size]


def reference(m: StateWindow, x: Tensor) -> Tensor:
    """Every token's window anew, from nothing, in the layer's equations."""

    def states(decays: Tensor, writes: Tensor) -> list[Tensor]:
        found = []
        for t in range(len(writes)):
            h = torch.zeros_like(writes[0])
            for i in range(max(0, t - m.size + 1), t + 1):
                h = h + decays[i + 1 : t + 1].prod() * writes[i]
            found.append(h)
        return found

    return mamba2.reference_with(m.mamba, x, states)
