"""Mamba-2 whose states have a largest norm."""

import torch
from torch import Tensor

from seriatim.backbones.mitigated_base import MitigatedMamba2
from seriatim.core import ragged
from seriatim.core.build import Spec
from seriatim.core.errors import check_positive
from seriatim.mixers.state_space import mamba2

__all__ = ["NormalizedState"]


class NormalizedState(MitigatedMamba2):
    r"""Mamba-2 that shrinks a head's state to a norm p whenever it has grown beyond it.

    .. math:: \hat h_t = \alpha_t h_{t-1} + \Delta_t B_t u_t^\top, \quad
              h_t = \hat h_t \min(1, p / \lVert \hat h_t \rVert)

    Each head's norm is that of its whole matrix. The recurrence is no longer linear, so it runs token by token, and is
    slow on long segments. Trained weights go into it by :func:`seriatim.backbones.mitigated_base.mitigate`.

    Args:
        dim: features in and out.
        inner: the spec of a `mamba2`; it gets `dim`.
        limit: p.

    Source: Chen et al., 2024, arXiv:2410.07145, "state normalization".
    """

    def __init__(self, dim: int, inner: Spec = "mamba2", limit: float = 1.0):
        super().__init__()
        check_positive(limit=limit)
        self.limit = limit
        self.set_inner(dim, inner)

    def init_system(self, batch: int) -> Tensor:
        return self.mamba.init_state(batch).system

    def scan(
        self,
        u: Tensor,
        step: Tensor,
        B: Tensor,
        C: Tensor,
        system: Tensor,
        reset: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        time, shared = u.size(1), self.mamba.heads // self.mamba.groups
        wide = system.dtype
        decay = self.mamba.decay.log_decay(step).exp().to(wide)
        if reset is not None:
            decay = ragged.mask(decay, ~reset)
        B, C = (port.to(wide).repeat_interleave(shared, 2) for port in (B, C))
        values = step.to(wide).unsqueeze(-1) * u.to(wide)
        read = []
        for t in range(time):
            new = decay[:, t, :, None, None] * system + B[:, t].unsqueeze(-1) * values[:, t].unsqueeze(-2)
            norm = torch.linalg.vector_norm(new, dim=(-2, -1), keepdim=True)
            system = new * (self.limit / norm.clamp(min=self.limit))
            read.append((C[:, t].unsqueeze(-2) @ system).squeeze(-2))
        y = torch.stack(read, 1).to(u.dtype) if read else torch.zeros_like(u)
        return self.mamba.skip(y, u), system


def reference(m: NormalizedState, x: Tensor) -> Tensor:
    """The recurrence and the norm, token by token, in the layer's equations."""

    def states(decays: Tensor, writes: Tensor) -> list[Tensor]:
        h, found = torch.zeros_like(writes[0]), []
        for decay, write in zip(decays, writes, strict=True):
            h = decay * h + write
            norm = h.square().sum().sqrt()
            h = h * m.limit / norm if norm > m.limit else h
            found.append(h)
        return found

    return mamba2.reference_with(m.mamba, x, states)
