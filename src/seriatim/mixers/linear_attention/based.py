"""Based's linear attention."""

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_divisible, check_size
from seriatim.mixers.linear_attention.base import MatrixInputs, MatrixMixer
from seriatim.nn.feature_maps import TaylorFeatures

__all__ = ["Based"]


class Based(MatrixMixer):
    r"""Based's global layer: softmax attention with the exponential to second order, on narrow queries and keys.

    .. math:: o_t = \frac{\sum_{i \le t} (1 + s_{ti} + s_{ti}^2 / 2)\, v_i}{\sum_{i \le t} (1 + s_{ti} + s_{ti}^2 / 2)},
              \quad s_{ti} = q_t \cdot k_i / \sqrt{D}, \quad y_t = W_o\, o_t

    for each head. The paper's model is a stack: beside layers of this kind, layers of softmax attention to a small
    window (64 or 128 tokens), which sees what this one blurs, and of short gated convolutions.

    Args:
        dim: features in and out.
        heads: memories; dim must be a multiple.
        query_dim: D, features of a query and of a key of a head. The memory has 1 + D + D (D + 1) / 2 rows.

    Source: Arora et al., 2024, arXiv:2402.18668, sections 4.1 and 4.2; initialisation of its official code.
    """

    normalize = True

    def __init__(self, dim: int, heads: int = 4, query_dim: int = 16):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        check_size(query_dim=query_dim)
        self.dim, self.heads, self.query_dim = dim, heads, query_dim
        self.features = TaylorFeatures(query_dim)
        self.key_dim, self.value_dim = self.features.features, dim // heads + 1
        self.qkv = nn.Linear(dim, 2 * heads * query_dim + dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)

    def project(self, x: Tensor) -> MatrixInputs:
        queries = self.heads * self.query_dim
        q, k, v = (z.unflatten(-1, (self.heads, -1)) for z in self.qkv(x).split([queries, queries, self.dim], -1))
        return MatrixInputs(self.features(q), self.features(k), v)

    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(o.flatten(-2))


def reference(m: Based, x: Tensor) -> Tensor:
    """The paper's sums, one sequence, token and head at a time."""
    queries, head_dim = m.heads * m.query_dim, m.dim // m.heads
    w_q, w_k, w_v = m.qkv.weight.split([queries, queries, m.dim])
    rows = []
    for sequence in x:
        out = []
        for t, u in enumerate(sequence):
            o = []
            for h in range(m.heads):
                i, j = slice(h * m.query_dim, (h + 1) * m.query_dim), slice(h * head_dim, (h + 1) * head_dim)
                s = torch.stack([(w_q[i] @ u) @ (w_k[i] @ past) / m.query_dim**0.5 for past in sequence[: t + 1]])
                weights = 1 + s + s**2 / 2
                o.append(sum(weights[n] * (w_v[j] @ sequence[n]) for n in range(t + 1)) / (weights.sum() + 1e-6))
            out.append(m.out.weight @ torch.cat(o))
        rows.append(torch.stack(out))
    return torch.stack(rows)
