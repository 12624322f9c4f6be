"""Copying after a delay."""

from random import Random

from seriatim.core.errors import check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask, powers_of_two

__all__ = ["Copying"]


class Copying(TokenTask):
    """Copying: symbols stand at the beginning, blanks follow, and at the end all symbols are asked for in order.

        s1 s2 ... sn . . . . ? ? ... ?     after the i-th question: the i-th symbol

    A row has 1, 2, 4, ... up to `count` symbols. What was said before is not shown.

    Args:
        count: symbols to copy at most.
        symbols: different symbols.

    Source: Gu and Dao, 2023, arXiv:2312.00752, figure 2 (left); Arjovsky et al., 2016, arXiv:1511.06464.
    """

    difficulty = "symbols"
    shortest = 2

    def __init__(self, count: int = 8, symbols: int = 16):
        check_size(count=count, symbols=symbols)
        self.count, self.symbols = count, symbols
        self.vocab_size = symbols + 2

    def row(self, length: int, random: Random) -> Row:
        count = random.choice(powers_of_two(1, min(self.count, length // 2)))
        copied = [random.randint(1, self.symbols) for _ in range(count)]
        blanks = length - 2 * count
        tokens = copied + [0] * blanks + [self.symbols + 1] * count
        return Row(tokens, [IGNORED] * (count + blanks) + copied, [count] * length)
