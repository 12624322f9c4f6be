"""SiLU and products gated by it, compiled where that is faster."""

import torch.nn.functional as F
from torch import Tensor

from seriatim.kernels.cpu.pointwise import silu_gate
from seriatim.kernels.cpu.pointwise import swiglu as compiled_swiglu
from seriatim.ops.backend import choose

__all__ = ["SMALL", "gated", "silu", "swiglu"]

SMALL = 1 << 14  # numbers below which calling an operator of our own takes longer than it saves


def gated(x: Tensor, gate: Tensor) -> Tensor:
    r""":math:`x \odot \mathrm{silu}(gate)`, elementwise. Source: arXiv:1702.03118."""
    if x.numel() < SMALL or x.shape != gate.shape or x.dtype != gate.dtype:
        return x * F.silu(gate)
    return choose({"reference": _gated, "torch": _gated, "cpu": silu_gate}, gate)(gate, x)


def swiglu(both: Tensor) -> Tensor:
    r""":math:`\mathrm{silu}(g) \odot x` of the halves g and x of the last dimension. Source: arXiv:2002.05202."""
    if both.numel() < SMALL:
        return _swiglu(both)
    return choose({"reference": _swiglu, "torch": _swiglu, "cpu": compiled_swiglu}, both)(both)


def silu(x: Tensor) -> Tensor:
    r""":math:`x\, \sigma(x)`, elementwise."""
    if x.numel() < SMALL:
        return F.silu(x)
    return choose({"reference": _gated, "torch": _gated, "cpu": silu_gate}, x)(x, None)


def _gated(gate: Tensor, x: Tensor | None) -> Tensor:
    return F.silu(gate) if x is None else x * F.silu(gate)


def _swiglu(both: Tensor) -> Tensor:
    gate, x = both.chunk(2, -1)
    return F.silu(gate) * x
