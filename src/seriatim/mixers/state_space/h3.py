"""H3."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim.core.derived import Derived
from seriatim.core.errors import check_divisible, check_positive, check_size
from seriatim.core.mixer import Mixer
from seriatim.mixers.state_space.invariant_base import System, read_system, real_system
from seriatim.nn.diagonal_system import DiagonalSystem
from seriatim.nn.diagonal_system import reference as reference_system
from seriatim.nn.short_conv import ShortConv

__all__ = ["H3", "H3State"]


class H3State(NamedTuple):
    """What is carried from segment to segment."""

    tail: Tensor  # (B, shift_size - 1, D): the last keys, which is the state of the shift systems
    system: Tensor  # (B, K, V, H, N / 2, 2), K = V = head_dim


class H3(Mixer):
    r"""H3: linear attention whose keys pass a shift system and whose memory is a diagonal one.

    .. math:: \tilde k_t = \sum_{i < M} c_i k_{t-i} + d\, k_t, \quad
              o_t = q_t^\top \mathrm{SSM}(\tilde k \otimes v)_t, \quad y_t = W_o o_t + b

    A shift system keeps the last M keys, so that a key can be compared with what came before a value; every entry of a
    head's outer products is read by the head's own system, h' = A h + B u with a skip: the past under similar keys.

    Args:
        dim: features in and out.
        head_dim: features of a head, of which an outer product has the square; dim must be a multiple.
        state_size: N, real state values of a diagonal system; even.
        shift_size: M, keys that a shift system keeps.
        init, discretization, step_min, step_max: of the diagonal systems, as of `s4d`.
        rate: steps between two tokens, 1 as trained.

    Source: Fu et al., 2022, arXiv:2212.14052, section 3; skips and initialisation are its official code's.
    """

    def __init__(
        self,
        dim: int,
        head_dim: int = 1,
        state_size: int = 64,
        shift_size: int = 64,
        init: str = "lin",
        discretization: str = "bilinear",
        step_min: float = 1e-3,
        step_max: float = 0.1,
        rate: float = 1.0,
    ):
        super().__init__()
        check_divisible(dim=dim, head_dim=head_dim)
        check_size(state_size=state_size, shift_size=shift_size)
        check_positive(rate=rate)
        self.dim, self.head_dim, self.state_size, self.shift_size = dim, head_dim, state_size, shift_size
        self.init, self.discretization, self.rate = init, discretization, rate
        self.step_min, self.step_max, self.heads = step_min, step_max, dim // head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.shift = ShortConv(dim, shift_size, bias=False)
        self.shift_skip = nn.Parameter(torch.randn(dim))
        self.system = DiagonalSystem(self.heads, 1, state_size, init, discretization, step_min, step_max)
        self.skip = nn.Parameter(torch.randn(self.heads))
        self.out = nn.Linear(dim, dim)
        self.kept = Derived(real_system)

    def init_state(self, batch: int) -> H3State:
        tail = self.new_state(batch, self.shift_size - 1, self.dim)
        shape = (self.head_dim, self.head_dim, self.heads, self.state_size // 2, 2)
        return H3State(tail, self.new_state(batch, *shape))

    def mix(self, x: Tensor, state: H3State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, H3State]:
        q, k, v = self.qkv(x).chunk(3, -1)
        shifted, tail = self.shift(k, state.tail, reset, lengths)
        k = torch.addcmul(shifted, self.shift_skip, k)
        q, k, v = (z.unflatten(2, (self.heads, self.head_dim)) for z in (q, k, v))
        products = torch.einsum("bthk,bthv->bkvth", k, v)
        entries = self.head_dim**2  # the heads' systems read each entry as a row of its own
        again = (None if z is None else z.repeat_interleave(entries, 0) for z in (reset, lengths))
        y, end = read_system(self.kept, self._discrete, products.flatten(0, 2), state.system.flatten(0, 2), *again)
        y = torch.addcmul(y.squeeze(3).view_as(products), self.skip, products)
        o = torch.einsum("bthk,bkvth->bthv", q, y)
        return self.out(o.flatten(2)), H3State(tail, end.view_as(state.system))

    def _discrete(self) -> System:
        return System(*self.system(self.rate))


def reference(m: H3, x: Tensor) -> Tensor:
    """The paper's equations, one sequence, head and token at a time."""
    width, wide = m.head_dim, torch.complex(x, x).dtype
    rows = []
    for sequence in x:
        q, k, v = (sequence @ m.qkv.weight.mT + m.qkv.bias).chunk(3, -1)
        heads = []
        for h in range(m.heads):
            A, B, C = reference_system(m.system, h, m.rate)
            state, out = torch.zeros(width, width, m.state_size, dtype=wide), []
            features = range(h * width, (h + 1) * width)
            for t in range(len(sequence)):
                keys = []
                for f in features:
                    shift = torch.zeros(m.shift_size, dtype=x.dtype)  # the state: 1 place on with every token
                    for past in range(t + 1):
                        shift = torch.cat([k[past, f : f + 1], shift[:-1]])
                    keys.append(m.shift.weight[f].flip(0) @ shift + m.shift_skip[f] * k[t, f])
                product = torch.outer(torch.stack(keys), v[t, list(features)])
                state = A * state + B * product[..., None]
                read = (C * state).sum(2).real + m.skip[h] * product
                out.append(read.mT @ q[t, list(features)])
            heads.append(torch.stack(out))
        rows.append(torch.cat(heads, 1) @ m.out.weight.mT + m.out.bias)
    return torch.stack(rows)
