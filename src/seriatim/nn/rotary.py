"""Rotary position embedding."""

import torch
from torch import Tensor

from seriatim.kernels.cpu.rotary import rotate as compiled
from seriatim.nn.pointwise import SMALL
from seriatim.ops.backend import choose

__all__ = ["rotate", "turns"]


def turns(positions: Tensor, features: int, base: float = 10000.0, dtype: torch.dtype = torch.float32) -> Tensor:
    r"""Cosine and sine of the angles :math:`p\theta_i`, :math:`\theta_i = base^{-2i/K}`: (2, B, T, K / 2).

    Args:
        positions: (B, T) int.
        features: K, even.
        base: the longest wavelength is about 2 pi base tokens.
        dtype: in which they are computed.
    """
    half = features // 2
    frequency = base ** (-torch.arange(half, device=positions.device, dtype=dtype) / half)
    angle = positions.to(dtype)[..., None] * frequency
    return torch.stack([angle.cos(), angle.sin()])


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    r"""Turns each pair of features by an angle proportional to the token's position.

    .. math:: (x_i, x_{i + K/2}) \mapsto (x_i \cos p\theta_i - x_{i+K/2} \sin p\theta_i,\;
              x_{i+K/2} \cos p\theta_i + x_i \sin p\theta_i)

    so that the product of a query and a key depends on their distance alone. Feature i is paired with i + K/2, as in
    Llama.

    Args:
        x: (B, T, H, K), K even.
        turns: what :func:`turns` makes of the positions, without a gradient; x is computed in its dtype.

    Source: Su et al., 2021, arXiv:2104.09864, section 3.2.
    """
    cosine, sine = turns
    wide = x.to(turns.dtype)
    run = _rotate if x.numel() < SMALL else choose({"reference": _rotate, "torch": _rotate, "cpu": compiled}, wide)
    return run(wide, cosine, sine).to(x.dtype)


def _rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    cosine, sine = cosine.unsqueeze(2), sine.unsqueeze(2)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
