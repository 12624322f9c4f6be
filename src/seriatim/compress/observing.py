"""What is seen of a model's activations while it reads text, from which their scales are made."""

import math

import torch
from torch import Tensor

__all__ = ["Observer"]

PERCENTILE, MOVE = 0.99999, 0.01  # of a batch's numbers; how far the estimate moves to each batch's


class Observer:
    """Of every channel, the largest magnitude and the largest of the batches' mean magnitudes.

    Args:
        percentile: keep a magnitude that nearly all numbers are below, too.
        moments: keep the mean of x x^T, too.

    Source: Chiang et al., 2025, arXiv:2503.22879, section 4 and appendix; the figures of its official code.
    """

    def __init__(self, percentile: bool = False, moments: bool = False):
        self.largest: Tensor | None = None
        self.mean: Tensor | None = None
        self.percentile: Tensor | None = None
        self.keeps_percentile = percentile
        self.keeps_moments, self.moments, self.count = moments, torch.zeros(()), 0

    def see(self, x: Tensor) -> None:
        """Takes a batch, (..., channels), into account."""
        rows = x.detach().flatten(0, -2).float()
        if not len(rows):
            return
        sizes = rows.abs()
        if self.largest is None or self.mean is None:
            self.largest, self.mean = sizes.amax(0), sizes.mean(0)
        else:
            self.largest = self.largest.maximum(sizes.amax(0))
            self.mean = self.mean.maximum(sizes.mean(0))
        if self.keeps_percentile:
            top = sizes.flatten().kthvalue(math.ceil(PERCENTILE * sizes.numel())).values
            self.percentile = top if self.percentile is None else self.percentile + MOVE * (top - self.percentile)
        if self.keeps_moments:
            before, self.count = self.count, self.count + len(rows)
            self.moments = self.moments * (before / self.count) + (rows.mT @ rows).double() / self.count
