"""Spiking neurons as a layer."""

from torch import Tensor, nn

from seriatim import ops

__all__ = ["LIF"]


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons, one a feature: :func:`seriatim.ops.lif_scan`. Its state is the membranes."""

    def __init__(self, threshold: float = 1.0, tau: float = 2.0):
        super().__init__()
        self.threshold, self.tau = threshold, tau

    def forward(
        self, x: Tensor, state: Tensor, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """x (B, T, dim) to spikes of the same shape, and the membranes (B, dim)."""
        return ops.lif_scan(x, tau=self.tau, threshold=self.threshold, state=state, reset=reset, lengths=lengths)
