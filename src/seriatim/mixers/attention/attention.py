"""Causal softmax attention."""

from torch import Tensor

from seriatim.mixers.attention.base import AttentionMixer, reference_attention
from seriatim.ops.attention import AttentionState, init_attention_state

__all__ = ["Attention"]


class Attention(AttentionMixer):
    r"""Causal softmax attention over everything read so far, with rotary positions.

    .. math:: o_t = \sum_{i \le t} \mathrm{softmax}_i(R_t q_t \cdot R_i k_i / \sqrt{D})\, v_i, \quad y_t = W_o\, o_t

    for each head; R_t turns pairs of features by angles proportional to t. Its state, the cache of keys and values,
    grows with every token read.

    Args:
        dim: features in and out.
        heads: queries; dim / heads must be an even whole number.
        kv_heads: keys and values shared by heads / kv_heads queries each; None is one for each head.
        rotary_base: base of the rotary wavelengths.

    Source: Vaswani et al., 2017, arXiv:1706.03762; rotary: arXiv:2104.09864; shared keys: arXiv:2305.13245.
    """

    constant_state = False

    def __init__(self, dim: int, heads: int = 4, kv_heads: int | None = None, rotary_base: float = 10000.0):
        super().__init__(dim, heads, kv_heads, rotary_base)

    def init_state(self, batch: int) -> AttentionState:
        return init_attention_state(batch, self.groups, self.head_dim, self.head_dim, like=self.out.weight)


def reference(m: Attention, x: Tensor) -> Tensor:
    """The equation, one sequence, token and head at a time."""
    return reference_attention(m, x)
