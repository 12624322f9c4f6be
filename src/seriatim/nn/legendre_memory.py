"""The fixed linear system that remembers a window of its inputs."""

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.derived import Derived
from seriatim.core.errors import check_size
from seriatim.core.mixer import state_dtype
from seriatim.nn.discretization import discretize
from seriatim.nn.hippo import legendre_delay

__all__ = ["LegendreMemory"]


class LegendreMemory(nn.Module):
    r""":math:`m_t = A m_{t-1} + B u_t`: the last `window` inputs as coefficients of `order` Legendre polynomials.

    A and B are the delay network (:func:`seriatim.nn.hippo.legendre_delay`) by a zero-order hold, and are not learned.
    Its state is m, (B, signals, order).

    Source: Voelker, Kajic and Eliasmith, 2019, "Legendre Memory Units", equations 1 to 4.
    """

    A_bits: Tensor
    B_bits: Tensor

    def __init__(self, order: int, window: float):
        super().__init__()
        check_size(order=order)
        self.order, self.window = order, window
        self.kept = Derived(tuple)
        A, B = discretize(*legendre_delay(order, window), torch.ones((), dtype=torch.float64), "zoh")
        # As the bits of float64: a module that is moved to half precision would round a buffer of floats.
        self.register_buffer("A_bits", A.contiguous().view(torch.int64), persistent=False)
        self.register_buffer("B_bits", B.contiguous().view(torch.int64), persistent=False)

    def matrices(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A (order, order) and B (order,)."""
        return self.A_bits.view(torch.float64).to(dtype), self.B_bits.view(torch.float64).to(dtype)

    def forward(
        self, u: Tensor, state: Tensor, reset: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """u (B, T, signals) to m at every token, (B, T, signals, order), in the dtype of u; and the state."""
        alone = u.size(1) == 1 and reset is None and lengths is None
        if alone and state.dtype == torch.float32 and not torch.is_grad_enabled():
            A, B = self.kept(self._single)  # of which programs of single steps are made
            state = state @ A.mT + B * u.to(B.dtype).transpose(1, 2)
            return state.unsqueeze(1).to(u.dtype), state
        self.kept.forget()
        A, B = self.matrices(state_dtype(u.dtype))
        answers = torch.eye(self.order, dtype=B.dtype, device=B.device)
        system = [z.expand(u.size(2), *z.shape) for z in (A, B, answers)]
        return ops.invariant_scan(u, *system, state=state, reset=reset, lengths=lengths)

    def _single(self) -> tuple[Tensor, Tensor]:
        return self.matrices(torch.float32)
