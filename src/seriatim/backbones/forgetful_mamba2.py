"""Mamba-2 that forgets more and remembers less."""

import math

import torch
from torch import Tensor

from seriatim.backbones.mitigated_base import MitigatedMamba2
from seriatim.core import ragged
from seriatim.core.build import Spec
from seriatim.core.errors import SeriatimError, check_number
from seriatim.core.linear import linear_in
from seriatim.mixers.state_space import mamba2
from seriatim.mixers.state_space.base import dual_scan

__all__ = ["ForgetfulMamba2"]


class ForgetfulMamba2(MitigatedMamba2):
    r"""Mamba-2 whose states decay faster, by a factor a token, and take in less of each.

    .. math:: h_t = c\, \alpha_t h_{t-1} + s\, \Delta_t B_t u_t^\top

    With both at 1 it is Mamba-2. Trained weights go into it by :func:`seriatim.backbones.mitigated_base.mitigate`.

    Args:
        dim: features in and out.
        inner: the spec of a `mamba2`; it gets `dim`.
        retain: c, above 0 and at most 1.
        insert: s, the same.

    Source: Chen et al., 2024, arXiv:2410.07145, "forget more and remember less".
    """

    def __init__(self, dim: int, inner: Spec = "mamba2", retain: float = 0.999, insert: float = 1.0):
        super().__init__()
        for name, value in {"retain": retain, "insert": insert}.items():
            check_number(**{name: value})
            if not 0 < value <= 1:
                raise SeriatimError(f"{name} is {value}; it must be above 0 and at most 1")
        self.retain, self.insert = retain, insert
        self.set_inner(dim, inner)

    def init_system(self, batch: int) -> Tensor:
        return self.mamba.init_state(batch).system

    @linear_in("u")
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
        log_decay = self.mamba.decay.log_decay(step) + math.log(self.retain)
        if lengths is not None:
            log_decay = ragged.mask(log_decay, ragged.real_tokens(lengths, u.size(1)))
        y, system = dual_scan(u, self.insert * step, log_decay, B, C, system, reset)
        return self.mamba.skip(y, u), system


def reference(m: ForgetfulMamba2, x: Tensor) -> Tensor:
    """The recurrence with both factors, token by token, in the layer's equations."""

    def states(decays: Tensor, writes: Tensor) -> list[Tensor]:
        h, found = torch.zeros_like(writes[0]), []
        for decay, write in zip(decays, writes, strict=True):
            h = m.retain * decay * h + m.insert * write
            found.append(h)
        return found

    return mamba2.reference_with(m.mamba, x, states)
