"""pLSTM on sequences."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim import ops
from seriatim.core import ragged
from seriatim.core.errors import check_divisible
from seriatim.core.linear import linear_in
from seriatim.core.mixer import Mixer, state_dtype

__all__ = ["PLSTM"]

GATES = {"source": -4.0, "transition": 1.0, "mark": -4.0, "direct": -6.0}  # the biases of a new model
STEEPNESS = 5.0
EPSILON = 1e-5


class PLSTM(Mixer):
    r"""pLSTM: a matrix memory between a token and the next, with gates to write, hand on and read it.

    .. math:: C_t = T_t C_{t-1} + S_t k_t v_t^\top, \quad
              o_t = \left( M_t C_{t-1}^\top q_t + D_t (q_t^\top k_t) v_t \right) / \sqrt{K}

    .. math:: S, M, D = \sigma(w^\top x + b), \quad T = \tanh(5 (w^\top x + b)), \quad
              y_t = W_o (w_n \odot \mathrm{rms}(o_t))

    A token reads the memory before it writes; itself it sees by the direct gate D. A transition may be negative. The
    norm is over each head. This is the paper's recurrence on graphs (`seriatim.ops.dag_scan`) on a chain.

    Args:
        dim: features in and out; a multiple of heads.
        heads: memories, each (dim / heads) x (dim / heads).

    Source: Pöppel et al., 2025, arXiv:2506.11997, equations 5 and 6, appendices A.3, B.1 and D.1 (initialisation).
    """

    def __init__(self, dim: int, heads: int = 4):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        self.dim, self.heads = dim, heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.gates = nn.Linear(dim, len(GATES) * heads)
        self.norm = nn.Parameter(torch.ones(heads, dim // heads))
        self.out = nn.Linear(dim, dim, bias=False)
        for layer in (self.qkv, self.out):
            nn.init.normal_(layer.weight, std=(2 / (5 * dim)) ** 0.5)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.gates.weight)
        with torch.no_grad():
            self.gates.bias.copy_(torch.tensor(list(GATES.values())).repeat_interleave(heads))

    def init_state(self, batch: int) -> Tensor:
        return self.new_state(batch, self.heads, self.dim // self.heads, self.dim // self.heads)

    def mix(self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in self.qkv(x).chunk(3, -1))
        gates = self.gates(x)
        source, transition, mark, direct = gates.to(state_dtype(gates.dtype)).chunk(len(GATES), -1)
        source, mark, direct = (torch.sigmoid(z) for z in (source, mark, direct))
        size, sign = _log_and_sign_of_tanh(STEEPNESS * transition)
        if lengths is not None:  # a padded token neither writes nor fades
            real = ragged.real_tokens(lengths, x.size(1))
            source, size, sign = ragged.mask(source, real), ragged.mask(size, real), ragged.mask(sign, real, 1.0)
        q = q * (self.dim // self.heads) ** -0.5
        own = (direct * (q * k).sum(-1))[..., None]
        o, state = _read_then_write(mark[..., None] * q, source[..., None] * k, v, own, size, sign, state, reset)
        o = o.to(x.dtype)
        o = F.rms_norm(o, o.shape[-1:], eps=EPSILON) * self.norm
        return self.out(o.flatten(-2)), state


def _log_and_sign_of_tanh(z: Tensor) -> tuple[Tensor, Tensor]:
    """log |tanh(z)| and the sign of z. Sizes are raised by the rounding error of 1, so that no log is infinite."""
    sign = torch.where(z < 0, -1.0, 1.0).to(z.dtype)
    twice = -2 * (sign * z + torch.finfo(z.dtype).eps)
    return torch.log(-torch.expm1(twice)) - torch.log1p(torch.exp(twice)), sign


@linear_in("v")
def _read_then_write(
    q: Tensor, k: Tensor, v: Tensor, own: Tensor, size: Tensor, sign: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`matrix_scan` on the tokens before: token t reads what t - 1 left, and `own` (B, T, H, 1) times its own value.

    size, sign (B, T, H) are of the transitions.

    Signs go into what is written and read: times the product of all signs so far, the memory fades by sizes only.
    """
    if q.size(1) == 0:
        return v, state
    so_far = sign if sign.size(1) == 1 else sign.cumprod(1)
    k = so_far[..., None] * k
    late_k, late_v, late_size = (F.pad(z[:, :-1], (*[0] * (2 * z.dim() - 4), 1, 0)) for z in (k, v, size))
    if reset is not None:
        late_k = ragged.mask(late_k, ~reset)
    before = F.pad(so_far[:, :-1], (0, 0, 1, 0), value=1.0)
    o, state = ops.matrix_scan(before[..., None] * q, late_k, late_v, late_size, state=state, reset=reset)
    new = k[:, -1, :, :, None] * v[:, -1, :, None, :]
    state = size[:, -1, :, None, None].exp() * state + new
    return o + own * v, so_far[:, -1, :, None, None] * state


def reference(m: PLSTM, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, token and head at a time."""
    width = m.dim // m.heads
    rows = []
    for sequence in x:
        memory, out = [x.new_zeros(width, width) for _ in range(m.heads)], []
        for u in sequence:
            q, k, v = (m.qkv.weight @ u + m.qkv.bias).view(3, m.heads, width)
            gates = (m.gates.weight @ u + m.gates.bias).view(4, m.heads)
            o = []
            for h in range(m.heads):
                s, _, mark, d = torch.sigmoid(gates[:, h])
                read = (mark * memory[h].T @ q[h] + d * (q[h] @ k[h]) * v[h]) / width**0.5
                o.append(read / (read.square().mean() + 1e-5).sqrt() * m.norm[h])
                memory[h] = torch.tanh(5 * gates[1, h]) * memory[h] + s * torch.outer(k[h], v[h])
            out.append(m.out.weight @ torch.cat(o))
        rows.append(torch.stack(out))
    return torch.stack(rows)
