"""The token before each token."""

import torch
from torch import Tensor

__all__ = ["token_shift"]


def token_shift(x: Tensor, last: Tensor, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Every token's predecessor, 0 at the start of a document, and the last real token of the segment.

    Args:
        x: (B, T, dim).
        last: (B, dim), the last real token of the segment before; 0 before anything was read.
        reset: (B, T) bool, a new document begins at this token.
        lengths: (B,) int, only the first lengths[b] tokens are real.

    Returns:
        (B, T, dim) in the dtype of x, and (B, dim) in that of `last`.

    Source: Peng et al., 2023, arXiv:2305.13048, section 3.1.1.
    """
    both = torch.cat([last.to(x.dtype)[:, None], x], 1)
    if lengths is None:
        following = both[:, -1].clone()  # a view would keep all tokens in memory for as long as the state lives
    else:
        following = both.gather(1, lengths[:, None, None].expand(-1, 1, x.size(2))).squeeze(1)
    before = both[:, :-1]
    if reset is not None:
        before = before.masked_fill(reset[..., None], 0)
    return before, following.to(last.dtype)
