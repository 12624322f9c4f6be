r"""Sort and cluster: the channels of Mamba-2 in an order in which neighbours are about as large.

What a channel of u is at most hardly changes from text to text. The channels of each head are sorted by it; heads that
then look alike, each divided by its norm, are put together (Ward's clusters), and in each cluster of heads the sorted
channels are cut into parts, within which they differ least. Every cluster of heads and part of channels has one scale.

The weights are rearranged to that order once, so that nothing is rearranged when the model runs.

Source: Chiang et al., 2025, arXiv:2503.22879, section 4.2. The cuts are the best there are, found by dynamic
programming, where the paper's are k-means'.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from seriatim.mixers.state_space.mamba2 import Mamba2

__all__ = ["Arrangement", "rearrange", "sort_and_cluster"]

HEAD_CLUSTERS, CHANNEL_CLUSTERS = 4, 4  # at most, of a group of heads and of a head


class Arrangement(NamedTuple):
    """channels (inner,), heads (H,): what comes where. clusters (inner,): of each channel, once rearranged."""

    channels: Tensor
    heads: Tensor
    clusters: Tensor


def sort_and_cluster(sizes: Tensor, mixer: Mamba2) -> Arrangement:
    """The order and the clusters for channels of u that are as large as `sizes` (inner,)."""
    table = sizes.double().cpu().view(mixer.heads, mixer.width).numpy()
    blocks = _blocks(mixer)
    if not blocks:  # norms of parts of heads: each channel stays in its part
        order = np.tile(np.arange(mixer.width), (mixer.heads, 1))
        return _arrangement(np.arange(mixer.heads), order, np.repeat(np.arange(mixer.heads), mixer.width))
    order = np.argsort(table, 1, kind="stable")
    table = np.take_along_axis(table, order, 1)
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), np.finfo(float).tiny)
    heads, clusters, count = [], [], 0
    for block in np.split(np.arange(mixer.heads), blocks):
        for members in _ward(table[block], HEAD_CLUSTERS):
            cuts = _cut(table[block[members]].T, CHANNEL_CLUSTERS)
            heads.append(block[members])
            clusters.append(np.tile(count + np.repeat(np.arange(len(cuts)), cuts), len(members)))
            count += len(cuts)
    kept = np.concatenate(heads)
    return _arrangement(kept, order[kept], np.concatenate(clusters))


@torch.no_grad()
def rearrange(mixer: Mamba2, arrangement: Arrangement) -> None:
    """Rearranges the weights. What the mixer computes stays the same, but for the order inside its state."""
    channels, heads = (z.to(mixer.D.device) for z in arrangement[:2])
    rest = torch.arange(mixer.inner, mixer.conv.dim)
    conv = torch.cat([channels, rest])
    into = torch.cat([channels, mixer.inner + conv])
    for parameter, order in (
        (mixer.in_proj.weight, into),
        (mixer.in_proj.bias, into),
        (mixer.conv.weight, conv),
        (mixer.conv.bias, conv),
        (mixer.decay.step.weight, heads),
        (mixer.decay.step_bias, heads),
        (mixer.decay.A_log, heads),
        (mixer.D, heads),
        (mixer.norm.weight, channels),
    ):
        if parameter is not None:
            parameter.copy_(parameter[order])
    mixer.out_proj.weight.copy_(mixer.out_proj.weight[:, channels])


def _blocks(mixer: Mamba2) -> int:
    """Equal parts of the heads, inside which heads may change places: those of one B and C, and of one norm."""
    blocks = math.lcm(mixer.groups, mixer.norm.groups)
    return blocks if mixer.heads % blocks == 0 else 0


def _arrangement(heads: np.ndarray, order: np.ndarray, clusters: np.ndarray) -> Arrangement:
    channels = (heads[:, None] * order.shape[1] + order).ravel()
    return Arrangement(*(torch.from_numpy(z.astype(np.int64)) for z in (channels, heads, clusters)))


def _ward(rows: np.ndarray, count: int) -> list[np.ndarray]:
    """The rows' numbers in at most `count` clusters: always the two are joined that add least to the variance."""
    clusters = [np.array([i]) for i in range(len(rows))]
    while len(clusters) > count:
        means, sizes = np.array([rows[z].mean(0) for z in clusters]), np.array([len(z) for z in clusters])
        apart = ((means[:, None] - means[None]) ** 2).sum(-1) * (sizes[:, None] * sizes / (sizes[:, None] + sizes))
        apart[np.tril_indices(len(clusters))] = np.inf
        i, j = np.unravel_index(apart.argmin(), apart.shape)
        joined = np.concatenate([clusters[i], clusters[j]])
        clusters = [z for k, z in enumerate(clusters) if k not in (i, j)] + [joined]
    return clusters


def _cut(rows: np.ndarray, count: int) -> list[int]:
    """How many neighbouring rows each of at most `count` parts has, so that the rows differ least from their means."""
    total = len(rows)
    count = min(count, total)
    sums = np.concatenate([np.zeros((1, rows.shape[1])), rows.cumsum(0)])
    squares = np.concatenate([[0.0], (rows**2).sum(1).cumsum()])

    def cost(first: int, last: int) -> float:
        return float(squares[last] - squares[first] - ((sums[last] - sums[first]) ** 2).sum() / (last - first))

    best = {(0, 0): (0.0, 0)}
    for parts in range(1, count + 1):
        for last in range(parts, total + 1):
            found = [
                (best[parts - 1, first][0] + cost(first, last), first)
                for first in range(parts - 1, last)
                if (parts - 1, first) in best
            ]
            if found:
                best[parts, last] = min(found)
    cuts, last = [], total
    for parts in range(count, 0, -1):
        first = best[parts, last][1]
        cuts.append(last - first)
        last = first
    return cuts[::-1]
