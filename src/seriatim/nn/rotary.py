"""Rotary position embedding."""

import torch
from torch import Tensor

__all__ = ["rotate"]


def rotate(x: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    r"""Turns each pair of features by an angle proportional to the token's position.

    .. math:: (x_i, x_{i + K/2}) \mapsto (x_i \cos p\theta_i - x_{i+K/2} \sin p\theta_i,\;
              x_{i+K/2} \cos p\theta_i + x_i \sin p\theta_i), \quad \theta_i = base^{-2i/K}

    so that the product of a query and a key depends on their distance alone. Feature i is paired with i + K/2, as in
    Llama.

    Args:
        x: (B, T, H, K), K even.
        positions: (B, T) int.
        base: the longest wavelength is about 2 pi base tokens.

    Source: Su et al., 2021, arXiv:2104.09864, section 3.2.
    """
    half = x.size(-1) // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequency = base ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angle = positions.to(wide)[..., None, None] * frequency
    cosine, sine = angle.cos(), angle.sin()
    first, second = x.to(wide).split(half, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)
