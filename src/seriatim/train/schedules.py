r"""Learning rates over a run, as shares of the highest one: pure functions of how far the run is.

progress is the number of the update (from 1) over the number of updates, so from just above 0 to 1. With w the
warm-up and f the final share, the rate rises as progress / w up to w, and then, with p = (progress - w) / (1 - w),

.. math:: \text{cosine}: f + (1 - f) \frac{1 + \cos \pi p}{2}, \quad \text{linear}: 1 - (1 - f) p, \quad
          \text{constant}: 1.

Source of the cosine: Loshchilov and Hutter, 2017, arXiv:1608.03983, without restarts.
"""

from math import cos, pi

from seriatim.core.errors import check_one_of

__all__ = ["SCHEDULES", "learning_rate_share"]

SCHEDULES = ("cosine", "linear", "constant")


def learning_rate_share(schedule: str, progress: float, warmup: float = 0.0, final: float = 0.0) -> float:
    """The share of the highest learning rate at `progress`, which is cut to 0 .. 1."""
    check_one_of("schedule", schedule, SCHEDULES)
    progress = min(max(progress, 0.0), 1.0)
    if progress < warmup:
        return progress / warmup
    if schedule == "constant" or warmup >= 1:
        return 1.0
    after = (progress - warmup) / (1 - warmup)
    remaining = (1 + cos(pi * after)) / 2 if schedule == "cosine" else 1 - after
    return final + (1 - final) * remaining
