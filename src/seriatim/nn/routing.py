"""Routers: which few of many parts a token goes to, and how evenly they are used."""

import torch
from torch import Tensor

__all__ = ["imbalance", "top_scores"]


def top_scores(scores: Tensor, active: int) -> Tensor:
    """The `active` largest of the scores (..., parts), the first of equal ones, and 0 in the place of the others."""
    parts = scores.size(-1)
    own, other = scores.unsqueeze(-1), scores.unsqueeze(-2)
    first = torch.ones(parts, parts, dtype=torch.bool, device=scores.device).tril(-1)  # of equal scores
    better = ((other > own) | ((other == own) & first)).to(scores.dtype).sum(-1)  # parts before this one
    return scores.masked_fill(better >= active, 0)


def imbalance(scores: Tensor, chosen: Tensor, active: int) -> Tensor:
    r"""1 where all parts are used alike, more where not; 0 without tokens: :math:`n \sum_i f_i P_i`.

    f is the share of the choices that fall on part i, P its mean score.

    Args:
        scores: (..., parts), that sum to 1; all 0 where a token does not count.
        chosen: (..., parts) bool, false where a token does not count.
        active: parts that a token goes to.

    Source: Fedus et al., 2021, arXiv:2101.03961, equations 4 to 6.
    """
    scores, chosen = scores.flatten(0, -2), chosen.flatten(0, -2)
    tokens = scores.sum().clamp(min=1)
    return scores.size(-1) * ((chosen.sum(0) / (active * tokens)) * (scores.sum(0) / tokens)).sum()
