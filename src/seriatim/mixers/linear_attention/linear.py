"""Linear attention."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_divisible, check_size
from seriatim.mixers.linear_attention.base import MatrixInputs, MatrixMixer
from seriatim.nn.feature_maps import POSITIVE, build_feature_map

__all__ = ["Linear"]


class Linear(MatrixMixer):
    r"""Linear attention: a feature map in the place of softmax, so that all of the past is one sum.

    .. math:: S_t = S_{t-1} + \phi(k_t) v_t^\top, \quad z_t = z_{t-1} + \phi(k_t), \quad
              o_t = \frac{S_t^\top \phi(q_t)}{z_t \cdot \phi(q_t) + \epsilon}, \quad y_t = W_o\, o_t + b_o

    for each head, :math:`\epsilon = 10^{-6}`. Without `normalize`, :math:`o_t = S_t^\top \phi(q_t)`.

    Args:
        dim: features in and out.
        heads: memories; dim must be a multiple.
        query_dim: features of a query and of a key of a head, before the feature map; None is dim / heads.
        feature_map: phi: "elu" (elu + 1, the paper's), "relu", "squared_relu", "identity", "taylor" (the exponential to
            second order, arXiv:2402.18668) or "performer" (random features of softmax, arXiv:2009.14794).
        normalize: divide by the sum of the weights, which "identity", whose weights may be negative, does not allow.
        random_features: how many "performer" has; None is query_dim log query_dim.
        seed: of the random features.

    Source: Katharopoulos et al., 2020, arXiv:2006.16236, sections 3.2 to 3.4; initialisation of its official code.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        query_dim: int | None = None,
        feature_map: str = "elu",
        normalize: bool = True,
        random_features: int | None = None,
        seed: int = 0,
    ):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        if query_dim is not None:
            check_size(query_dim=query_dim)
        self.dim, self.heads, self.query_dim, self.feature_map = dim, heads, query_dim, feature_map
        self.normalize, self.random_features, self.seed = normalize, random_features, seed
        self.queries = heads * (query_dim or dim // heads)
        self.features = build_feature_map(feature_map, self.queries // heads, random_features, seed)
        if normalize and feature_map not in POSITIVE:
            raise SeriatimError(f"normalize is True and feature_map is {feature_map!r}; it must then be False")
        self.key_dim, self.value_dim = self.features.features, dim // heads + normalize
        self.qkv = nn.Linear(dim, 2 * self.queries + dim)
        self.out = nn.Linear(dim, dim)

    def project(self, x: Tensor) -> MatrixInputs:
        q, k, v = (
            z.unflatten(-1, (self.heads, -1)) for z in self.qkv(x).split([self.queries, self.queries, self.dim], -1)
        )
        return MatrixInputs(self.features(q), self.features(k), v)

    def readout(self, x: Tensor, o: Tensor) -> Tensor:
        return self.out(o.flatten(-2))


def reference(m: Linear, x: Tensor) -> Tensor:
    """The paper's sums, one sequence, token and head at a time, all of the past anew for every token."""
    width, head_dim = m.queries // m.heads, m.dim // m.heads
    rows = []
    for sequence in x:
        projected, out = sequence @ m.qkv.weight.T + m.qkv.bias, []
        for t in range(len(sequence)):
            o = []
            for h in range(m.heads):
                q = projected[t, h * width : (h + 1) * width]
                k = projected[: t + 1, m.queries + h * width : m.queries + (h + 1) * width]
                v = projected[: t + 1, 2 * m.queries + h * head_dim : 2 * m.queries + (h + 1) * head_dim]
                weights = torch.stack([_kernel(m, q, key) for key in k])
                o.append(weights @ v / (weights.sum() + 1e-6 if m.normalize else 1))
            out.append(m.out.weight @ torch.cat(o) + m.out.bias)
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _kernel(m: Linear, q: Tensor, k: Tensor) -> Tensor:
    """phi(q) . phi(k), written out."""
    scale = len(q) ** -0.5
    if m.feature_map == "taylor":
        s = q @ k * scale
        return 1 + s + s**2 / 2
    if m.feature_map == "performer":
        q, k = q * scale**0.5, k * scale**0.5
        w = m.features.get_buffer("random")
        return (torch.exp(w @ q - q @ q / 2) * torch.exp(w @ k - k @ k / 2)).mean()
    maps: dict[str, Callable[[Tensor], Tensor]] = {
        "elu": lambda x: torch.where(x > 0, x + 1, x.exp()),
        "relu": lambda x: x.clamp(min=0),
        "squared_relu": lambda x: x.clamp(min=0) ** 2,
        "identity": lambda x: x,
    }
    return maps[m.feature_map](q) @ maps[m.feature_map](k)
