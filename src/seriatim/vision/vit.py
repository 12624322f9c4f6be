"""A vision transformer."""

import torch
from torch import Tensor, nn

from seriatim import ops
from seriatim.core.errors import SeriatimError, check_divisible, check_size
from seriatim.vision.base import VisionBackbone, init_small

__all__ = ["GridAttention", "ViT", "reference"]


class GridAttention(nn.Module):
    r"""Softmax attention of every patch to all.

    .. math:: o_i = \sum_j \mathrm{softmax}_j(q_i \cdot k_j / \sqrt{K})\, v_j, \quad y = W_o\, o + b

    for each head.

    Args:
        dim: features in and out; a multiple of heads.
        heads: queries of a patch.

    Source: Vaswani et al., 2017, arXiv:1706.03762, section 3.2.
    """

    def __init__(self, dim: int, heads: int = 3):
        super().__init__()
        check_divisible(dim=dim, heads=heads)
        self.dim, self.heads = dim, heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        init_small(self.qkv, self.out)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, rows, columns, dim) to the same shape."""
        if x.dim() != 4 or x.size(-1) != self.dim:
            raise SeriatimError(f"x has shape {tuple(x.shape)}; it must be (batch, rows, columns, {self.dim})")
        q, k, v = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.heads, -1)).unbind(2)
        o, _ = ops.attention(q, k, v, causal=False)
        return self.out(o.flatten(-2).view_as(x))


class ViT(VisionBackbone):
    """A vision transformer in the shell of :class:`seriatim.vision.plstm_vision.PLSTMVision`, to compare with it.

    So it has RMS norms, and its features are those of the patches in the corners, where the original has LayerNorm and
    a token of its own for the class.

    Args:
        dim: features of a patch; a multiple of heads.
        depth: blocks.
        heads: of attention.
        patch: pixels of a patch's side.
        channels: of the images.
        size: pixels of a side of the images that positions are learned on; None is no positions.
        expansion: hidden units of a feed-forward layer as a multiple of dim.

    Source: Dosovitskiy et al., 2020, arXiv:2010.11929, section 3.1; the shell: Pöppel et al., 2025, arXiv:2506.11997,
        appendix B.1.
    """

    def __init__(
        self,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        patch: int = 16,
        channels: int = 3,
        size: int | None = 192,
        expansion: float = 4.0,
    ):
        check_size(depth=depth)
        layers = [GridAttention(dim, heads) for _ in range(depth)]
        super().__init__(dim, layers, expansion, patch, channels, size)
        self.depth, self.heads = depth, heads


def reference(m: GridAttention, x: Tensor) -> Tensor:
    """The equation, one image, patch and head at a time."""
    y = x.clone()
    for b, image in enumerate(x.flatten(1, 2)):
        q, k, v = (image @ m.qkv.weight.T + m.qkv.bias).view(len(image), 3, m.heads, -1).unbind(1)
        for i in range(len(image)):
            o = []
            for h in range(m.heads):
                weights = (k[:, h] @ q[i, h] / q.size(-1) ** 0.5).exp()
                o.append((weights / weights.sum()) @ v[:, h])
            y[b, i // x.size(2), i % x.size(2)] = m.out.weight @ torch.cat(o) + m.out.bias
    return y
