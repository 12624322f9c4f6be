"""The shell of image backbones: patches, positions, residual blocks of any layer on a grid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core.errors import SeriatimError, check_divisible, check_positive, check_size
from seriatim.nn.feed_forward import PlainFeedForward
from seriatim.nn.norms import RMSNorm

__all__ = ["VisionBackbone", "init_small"]


class VisionBackbone(nn.Module):
    """Patches, learned positions, residual blocks of RMS norm and layer, RMS norm and feed-forward, a last norm.

    The features are those of the four patches in the corners, one after another. Positions are stretched (bicubic) to
    images of another size than `size`. A method makes the layers, which map (B, rows, columns, dim) to the same shape.

    Attributes:
        features: the width of the output, 4 dim.

    Source: Pöppel et al., 2025, arXiv:2506.11997, appendix B.1, with the initialisation of D.1.
    """

    def __init__(
        self, dim: int, layers: Sequence[nn.Module], expansion: float, patch: int, channels: int, size: int | None
    ):
        super().__init__()
        check_size(dim=dim, patch=patch, channels=channels)
        check_positive(expansion=expansion)
        self.dim, self.expansion, self.patch, self.channels, self.size = dim, expansion, patch, channels, size
        self.features = 4 * dim
        self.blocks = nn.ModuleList(_Block(dim, layer, expansion) for layer in layers)
        self.embed = nn.Conv2d(channels, dim, patch, patch)
        nn.init.normal_(self.embed.weight, std=(2 / (5 * channels * patch**2)) ** 0.5)
        if self.embed.bias is not None:
            nn.init.zeros_(self.embed.bias)
        self.positions: nn.Parameter | None = None
        if size is not None:
            check_divisible(size=size, patch=patch)
            self.positions = nn.Parameter(torch.empty(dim, size // patch, size // patch))
            nn.init.normal_(self.positions, std=(2 / (5 * dim)) ** 0.5)
        self.norm = RMSNorm(dim)

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, height, width) to (B, 4 dim). Height and width are multiples of the patch."""
        shape = tuple(images.shape)
        whole = len(shape) == 4 and all(side and side % self.patch == 0 for side in shape[2:])
        if not whole or shape[1] != self.channels:
            wanted = f"(batch, {self.channels}, height, width), the sides multiples of {self.patch}"
            raise SeriatimError(f"images has shape {shape}; it must be {wanted}")
        x = self.embed(images)
        if self.positions is not None:
            positions: Tensor = self.positions
            if positions.shape[1:] != x.shape[2:]:
                positions = F.interpolate(positions[None], x.shape[2:], mode="bicubic", align_corners=False)[0]
            x = x + positions
        x = x.movedim(1, -1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return torch.cat([x[:, row, column] for column in (0, -1) for row in (0, -1)], -1)


class _Block(nn.Module):
    """x + layer(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, dim: int, layer: nn.Module, expansion: float):
        super().__init__()
        self.layer_norm, self.layer = RMSNorm(dim), layer
        self.feed_forward_norm, self.feed_forward = RMSNorm(dim), PlainFeedForward(dim, round(expansion * dim))
        init_small(self.feed_forward.up, self.feed_forward.out)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer(self.layer_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


def init_small(*layers: nn.Linear) -> None:
    """Normal weights of variance 2 / (5 inputs), no biases."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=(2 / (5 * layer.in_features)) ** 0.5)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
