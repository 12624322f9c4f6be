"""Group norm of frames."""

import torch
from torch import Tensor, nn

from seriatim.core.errors import check_divisible

__all__ = ["EPSILON", "GroupNorm"]

EPSILON = 1e-6


class GroupNorm(nn.Module):
    """torch.nn.GroupNorm, whose gradient of the weight alone ends the process in torch 2.13 on a CPU.

    Source: Wu and He, 2018, arXiv:1803.08494.
    """

    def __init__(self, groups: int, channels: int):
        super().__init__()
        check_divisible(channels=channels, groups=groups)
        self.groups = groups
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x (frames, channels, height, width) to the same."""
        return torch.group_norm(x, self.groups, eps=EPSILON) * self.weight[:, None, None] + self.bias[:, None, None]
