"""Attention as a recurrent network."""

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_divisible
from seriatim.core.mixer import Mixer, state_dtype
from seriatim.ops.softmax_scan import SoftmaxState

__all__ = ["Aaren"]


class Aaren(Mixer):
    r"""Attention as a recurrent network: a learned query attends, by softmax, to every prefix.

    .. math:: q = W_q\, t, \quad k_i = W_k x_i, \quad v_i = W_v x_i, \quad s_i = q \cdot k_i / \sqrt{D}

    .. math:: o_t = \frac{\sum_{i \le t} e^{s_i} v_i}{\sum_{i \le t} e^{s_i}}, \quad y_t = W_o\, o_t

    for each head, where t is one learned token for the layer (so every head has its learned query). Because the query
    does not
    depend on the token, the running maximum, total and weighted sum are all the state: (B, H), (B, H) and (B, H, D).
    All outputs come from one parallel prefix scan, :func:`seriatim.ops.softmax_scan`.

    Args:
        dim: features in and out.
        heads: queries; dim must be a multiple.

    Source: Feng et al., 2024, arXiv:2405.13956, sections 3.1 to 3.3.
    """

    def __init__(self, dim: int, heads: int = 4):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        self.dim, self.heads, self.head_dim = dim, heads, dim // heads
        self.token = nn.Parameter(torch.randn(dim))
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        for weight in (self.query.weight, *self.key_value.weight.split(dim), self.out.weight):
            nn.init.xavier_uniform_(weight)

    def init_state(self, batch: int) -> SoftmaxState:
        return SoftmaxState(
            maximum=self.new_state(batch, self.heads, fill=float("-inf")),
            total=self.new_state(batch, self.heads),
            weighted=self.new_state(batch, self.heads, self.head_dim),
        )

    def mix(
        self, x: Tensor, state: SoftmaxState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, SoftmaxState]:
        keys, values = (z.unflatten(-1, (self.heads, -1)) for z in self.key_value(x).chunk(2, -1))
        query = self.query(self.token).view(self.heads, self.head_dim)
        wide = state_dtype(keys.dtype)
        scores = (keys.to(wide) * query.to(wide)).sum(-1) * self.head_dim**-0.5
        if lengths is not None:
            scores = ragged.mask(scores, ragged.real_tokens(lengths, x.size(1)), float("-inf"))
        o, state = ops.softmax_scan(scores, values, state=state, reset=reset)
        return self.out(o.flatten(-2)), state


def reference(m: Aaren, x: Tensor) -> Tensor:
    """Softmax attention of the learned query over every prefix, written out."""
    w_k, w_v = m.key_value.weight.split(m.dim)
    q = m.query.weight @ m.token
    rows = []
    for sequence in x:
        k, v, out = sequence @ w_k.T, sequence @ w_v.T, []
        for t in range(len(sequence)):
            o = []
            for h in range(m.heads):
                j = slice(h * m.head_dim, (h + 1) * m.head_dim)
                scores = torch.stack([q[j] @ k[i, j] / m.head_dim**0.5 for i in range(t + 1)])
                o.append(torch.softmax(scores, 0) @ v[: t + 1, j])
            out.append(m.out.weight @ torch.cat(o))
        rows.append(torch.stack(out))
    return torch.stack(rows)
