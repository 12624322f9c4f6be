"""Sliding-window attention."""

from torch import Tensor

from seriatim.core.errors import check_size
from seriatim.mixers.attention.base import AttentionMixer, reference_attention
from seriatim.ops.attention import WindowState, init_window_state

__all__ = ["Window"]


class Window(AttentionMixer):
    r"""Softmax attention to the last `size` tokens, the present one among them, with rotary positions.

    .. math:: o_t = \sum_{t - W < i \le t} \mathrm{softmax}_i(R_t q_t \cdot R_i k_i / \sqrt{D})\, v_i, \quad y_t =
    W_o\, o_t

    for each head. Its state is a ring of `size` keys and values, however much was read.

    Args:
        dim: features in and out.
        size: W, tokens seen.
        heads: queries; dim / heads must be an even whole number.
        kv_heads: keys and values shared by heads / kv_heads queries each; None is one for each head.
        rotary_base: base of the rotary wavelengths.

    Source: Beltagy et al., 2020, arXiv:2004.05150, section 3.1; ring cache: Jiang et al., 2023, arXiv:2310.06825.
    """

    def __init__(
        self, dim: int, size: int = 128, heads: int = 4, kv_heads: int | None = None, rotary_base: float = 10000.0
    ):
        super().__init__(dim, heads, kv_heads, rotary_base)
        check_size(size=size)
        self.size = self.window = size

    def init_state(self, batch: int) -> WindowState:
        return init_window_state(batch, self.size, self.groups, self.head_dim, self.head_dim, like=self.out.weight)


def reference(m: Window, x: Tensor) -> Tensor:
    """The equation, one sequence, token and head at a time."""
    return reference_attention(m, x)
