"""Parity."""

from itertools import accumulate
from random import Random

from seriatim.tasks.base import Row, TokenTask

__all__ = ["Parity"]


class Parity(TokenTask):
    r"""Parity: after every bit, whether the ones so far are odd in number.

    .. math:: y_t = \left(\sum_{s \le t} x_s\right) \bmod 2

    The level is how many ones have been read.

    Source: Grazzi et al., 2024, arXiv:2411.12537, section 5.1.
    """

    difficulty = "ones"

    def __init__(self) -> None:
        self.vocab_size = 2

    def row(self, length: int, random: Random) -> Row:
        tokens = [random.getrandbits(1) for _ in range(length)]
        counts = list(accumulate(tokens))
        return Row(tokens, [count % 2 for count in counts], counts)
