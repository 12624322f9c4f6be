"""The loss of classification, compiled where that is faster."""

import torch.nn.functional as F
from torch import Tensor

from seriatim.kernels.cpu.cross_entropy import IGNORED
from seriatim.kernels.cpu.cross_entropy import cross_entropy as compiled
from seriatim.ops.backend import choose

__all__ = ["LARGE", "cross_entropy"]

LARGE = 1 << 19  # logits from which on the kernel is the faster: those that no longer fit the caches


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    r""":math:`-\sum_n \log \mathrm{softmax}(logits_n)_{targets_n}` in nats, over the targets that are not -100.

    Args:
        logits: (N, V), any floating dtype; computed in float32 at least.
        targets: (N,) int64, each below V, or -100 where nothing is to be predicted.

    Returns:
        The sum, a scalar; 0 where no target is to be predicted.
    """
    logits = logits if logits.dtype.itemsize >= 4 else logits.float()
    if logits.numel() < LARGE:
        return _portable(logits, targets)
    return choose({"reference": _portable, "torch": _portable, "cpu": compiled}, logits)(logits, targets)


def _portable(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")
