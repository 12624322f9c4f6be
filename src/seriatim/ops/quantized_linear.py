r"""Products with weights of 8 and of 4 bits.

.. math:: y_o = s_o \sum_i q_{oi} x_i, \qquad y_o = \sum_g s_{og} \sum_{i \in g} q_{oi} x_i

Weights of 8 bits are int8 from -127 to 127, with one float32 scale for each row. Weights of 4 bits are from -8 to 7 and
lie in pairs: of each 32 neighbours of a row, byte i holds 8 + w[i] in its lower half and w[16 + i] in its upper one.
They have one bfloat16 scale for each group of a row's neighbours; groups are multiples of 32, the last may be shorter,
and a row is filled up with zeros to a multiple of 32.

Few rows of x are multiplied by the step kernels (`kernels/cpu/source/step_quantized.py`), which read the weights as
they are; many rows of whole numbers by PyTorch's product of int8, and else with the weights widened first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PAIRED", "byte_linear", "nibble_linear", "pack_nibbles", "reference", "unpack_nibbles"]

PAIRED = 32  # weights whose halves lie in the same bytes


def byte_linear(x: Tensor, weight: Tensor, scale: Tensor, whole: bool = False) -> Tensor:
    """x times weights of 8 bits.

    Args:
        x: (..., K).
        weight: (N, K) int8.
        scale: (N,).
        whole: the numbers of x are whole and from -127 to 127, so that products of integers may be used.

    Returns:
        (..., N), in x's dtype.
    """
    return _byte_linear(x, weight, scale, whole)


def nibble_linear(x: Tensor, weight: Tensor, scale: Tensor, group: int, whole: bool = False) -> Tensor:
    """x times weights of 4 bits.

    Args:
        x: (..., K).
        weight: (N, ceil(K / 32) 16) int8, pairs.
        scale: (N, groups).
        group: how many neighbours share a scale, a multiple of 32.
        whole: the numbers of x are whole and from -127 to 127, so that products of integers may be used.

    Returns:
        (..., N), in x's dtype.
    """
    return _nibble_linear(x, weight, scale, group, whole)


def pack_nibbles(q: Tensor) -> Tensor:
    """Whole numbers from -8 to 7, (N, K), as pairs."""
    q = F.pad(q.to(torch.int8), (0, -q.size(-1) % PAIRED)).unflatten(-1, (-1, 2, PAIRED // 2))
    return (q[..., 1, :] * 16 + (q[..., 0, :] + 8)).flatten(-2)


def unpack_nibbles(pairs: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The first `size` numbers of rows of pairs (..., bytes), in a floating dtype."""
    both = pairs.to(dtype)
    high = (both / 16).floor()
    low = both - 16 * high - 8
    halves = [half.unflatten(-1, (-1, PAIRED // 2)) for half in (low, high)]
    return torch.stack(halves, -2).flatten(-3)[..., :size]


def reference(x: Tensor, q: Tensor, scale: Tensor, group: int) -> Tensor:
    """The equation, one output at a time: x (B, K), q (N, K) whole numbers, scale (N, groups)."""
    rows = []
    for row in x:
        out = []
        for weights, scales in zip(q, scale, strict=True):
            parts = [
                s * sum(w * z for w, z in zip(weights[g * group :][:group], row[g * group :][:group], strict=True))
                for g, s in enumerate(scales)
            ]
            out.append(torch.stack(parts).sum())
        rows.append(torch.stack(out))
    return torch.stack(rows)


@torch.library.custom_op("seriatim::byte_linear", mutates_args=())
def _byte_linear(x: Tensor, weight: Tensor, scale: Tensor, whole: bool) -> Tensor:
    # With rows of one number PyTorch 2.13 multiplies by other weights.
    if whole and x.device.type == "cpu" and x.numel() and x.size(-1) > 1 and x.dtype == torch.float32:
        rows = x.reshape(-1, x.size(-1)).to(torch.int8)
        found = torch._int_mm(rows, weight.mT).to(x.dtype)
        return found.mul_(scale.to(x.dtype)).view(*x.shape[:-1], weight.size(0))
    return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)


@torch.library.custom_op("seriatim::nibble_linear", mutates_args=())
def _nibble_linear(x: Tensor, weight: Tensor, scale: Tensor, group: int, whole: bool) -> Tensor:
    q = unpack_nibbles(weight, x.size(-1), x.dtype)
    return F.linear(x, q * scale.to(x.dtype).repeat_interleave(group, -1)[:, : x.size(-1)])


@_byte_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, whole: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


@_nibble_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, group: int, whole: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))
