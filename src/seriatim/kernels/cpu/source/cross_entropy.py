"""Cross entropy of softmax: a row of logits is read once from memory each way, and no table of probabilities is kept.

An item is a block of rows. Dimensions: N rows, V classes.
"""

import numpy as np

from seriatim.kernels.cpu.source.functions import exp
from seriatim.kernels.cpu.source.language import (
    Address,
    Floats1,
    Floats2,
    Index,
    Ints1,
    address,
    function,
    kernel,
    line,
    vector,
)
from seriatim.kernels.cpu.source.lines import copy, fill

__all__ = ["backward", "forward"]

ZERO, ONE = np.float32(0), np.float32(1)
NOTHING = np.float32(-np.inf)
ABSENT = -100  # a target that is none
LANES = 64  # numbers taken at a time, in vectors; a row's last ones are filled up with -inf


@kernel
def forward(item: Index, scratch: Address, block: Index, logits: Floats2, targets: Ints1, nats: Floats1, sums: Floats2):
    """sums (2, N): the largest logit of a row, and the sum of e^(logit - largest); 0 and 1 where the target is ABSENT.

    nats (N): largest - logit of the target; NaN where there is no such class. scratch: 2 * LANES.
    """
    largest, total = line(sums, 0), line(sums, 1)
    for row in range(item * block, min(logits.shape[0], (item + 1) * block)):
        classes, target = logits.shape[1], targets[row]
        if target == ABSENT:
            largest[row], total[row], nats[row] = ZERO, ONE, ZERO
            continue
        lanes, place = vector(scratch, LANES), address(logits, row)
        fill(lanes, NOTHING)
        for begin in range(0, classes, LANES):
            values = vector(_whole(place, begin, classes, scratch + 4 * LANES), LANES)
            for lane in range(LANES):
                lanes[lane] = lanes[lane] if lanes[lane] >= values[lane] else values[lane]
        top = _largest(lanes)
        fill(lanes, ZERO)
        for begin in range(0, classes, LANES):
            values = vector(_whole(place, begin, classes, scratch + 4 * LANES), LANES)
            for lane in range(LANES):
                lanes[lane] += exp(values[lane] - top)
        largest[row], total[row] = top, _sum(lanes)
        nats[row] = top - logits[row, target] if 0 <= target < classes else NOTHING - NOTHING


@kernel
def backward(
    item: Index,
    scratch: Address,
    block: Index,
    grad: Floats1,
    logits: Floats2,
    targets: Ints1,
    sums: Floats2,
    grad_logits: Floats2,
):
    """grad_logits = grad (softmax - one at the target); 0 where the target is ABSENT. scratch: 2 * LANES."""
    largest, total = line(sums, 0), line(sums, 1)
    for row in range(item * block, min(logits.shape[0], (item + 1) * block)):
        out, target, place = line(grad_logits, row), targets[row], address(logits, row)
        if target == ABSENT:
            fill(out, ZERO)
            continue
        top, share = largest[row], grad[0] / total[row]
        for begin in range(0, out.size, LANES):
            values = vector(_whole(place, begin, out.size, scratch + 4 * LANES), LANES)
            left = min(LANES, out.size - begin)
            where = address(grad_logits, row) + 4 * begin if left == LANES else scratch
            found = vector(where, LANES)
            for lane in range(LANES):
                found[lane] = exp(values[lane] - top) * share
            if left < LANES:
                copy(vector(address(grad_logits, row) + 4 * begin, left), found)
        out[target] -= grad[0]


@function
def _whole(place, begin, size, room):
    """Where LANES numbers from `begin` on lie: in the row itself, or in `room` where the row has no more so many."""
    if size - begin >= LANES:
        return place + 4 * begin
    fill(vector(room, LANES), NOTHING)
    copy(vector(room, size - begin), vector(place + 4 * begin, size - begin))
    return room


@function
def _largest(lanes):
    """The largest of the lanes, which are overwritten; NaN if one is."""
    half = LANES // 2
    while half > 0:
        for lane in range(half):
            other = lanes[lane + half]
            lanes[lane] = lanes[lane] if lanes[lane] >= other else other
        half //= 2
    return lanes[0]


@function
def _sum(lanes):
    """The sum of the lanes."""
    total = ZERO
    for lane in range(LANES):
        total += lanes[lane]
    return total
