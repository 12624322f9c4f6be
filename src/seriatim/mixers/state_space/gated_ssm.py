"""The Gated SSM: each feature fades and is written at rates that the token chooses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_size
from seriatim.core.mixer import Mixer, state_dtype

__all__ = ["GatedSSM"]


class GatedSSM(Mixer):
    r"""An LSTM without the dependence of its gates on the state, and layer of features at once.

    .. math:: i_t = \sigma(W_i x_t), \quad z_t = W_z x_t, \quad o_t = \mathrm{GeLU}(W_o x_t), \quad
              f_t = \sigma(W_f x_t)

    .. math:: h_t = f_t \odot h_{t-1} + i_t \odot z_t, \quad y_t = W_{out} (o_t \odot h_t)

    It stands for mixer and feed-forward layer together, so a stack of it has `feed_forward="none"`.

    Args:
        dim: features in and out.
        state_size: N, features of the state; None is 5/4 dim.

    Source: Blouir et al., 2024, arXiv:2411.01030, section 3.4; sizes: table 7. The paper names no initialisation: here
        matrices begin with deviation 1 / sqrt(inputs), as in its listing (A.16.1), which leaves it to Flax.
    """

    def __init__(self, dim: int, state_size: int | None = None):
        super().__init__()
        check_size(dim=dim)
        if state_size is not None:
            check_size(state_size=state_size)
        self.dim, self.state_size = dim, state_size
        self.inner = max(1, 5 * dim // 4) if state_size is None else state_size
        self.input_gate = nn.Linear(dim, self.inner, bias=False)
        self.value = nn.Linear(dim, self.inner, bias=False)
        self.output_gate = nn.Linear(dim, self.inner, bias=False)
        self.forget_gate = nn.Linear(dim, self.inner, bias=False)
        self.out = nn.Linear(self.inner, dim, bias=False)
        for layer in (self.input_gate, self.value, self.output_gate, self.forget_gate, self.out):
            bound = 2 * layer.in_features**-0.5
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5 / 0.87962566, a=-bound, b=bound)

    def init_state(self, batch: int) -> Tensor:
        return self.new_state(batch, self.inner)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        gate = self.forget_gate(x)
        forget = torch.sigmoid(gate.to(state_dtype(gate.dtype)))
        written = torch.sigmoid(self.input_gate(x)) * self.value(x)
        if lengths is not None:  # padding: x is 0, so nothing is written; nothing is forgotten either
            forget = ragged.mask(forget, ragged.real_tokens(lengths, x.size(1)), 1.0)
        h, state = ops.diagonal_scan(forget, written, state=state, reset=reset)
        return self.out(F.gelu(self.output_gate(x)) * h), state


def reference(m: GatedSSM, x: Tensor) -> Tensor:
    """The equations, one sequence and token at a time."""
    rows = []
    for sequence in x:
        h, out = x.new_zeros(m.inner), []
        for token in sequence:
            i = 1 / (1 + torch.exp(-(m.input_gate.weight @ token)))
            f = 1 / (1 + torch.exp(-(m.forget_gate.weight @ token)))
            o = m.output_gate.weight @ token
            o = o * (1 + torch.erf(o / 2**0.5)) / 2
            h = f * h + i * (m.value.weight @ token)
            out.append(m.out.weight @ (o * h))
        rows.append(torch.stack(out))
    return torch.stack(rows)
