"""Copying with noise between the symbols."""

from random import Random

from seriatim.core.errors import check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask, powers_of_two

__all__ = ["SelectiveCopying"]


class SelectiveCopying(TokenTask):
    """Selective copying: symbols stand anywhere among blanks, and at the end all are asked for in order.

        . s1 . . . s2 s3 . . ... ? ? ... ?     after the i-th question: the i-th symbol

    Counting positions does not help: what is to be kept depends on what is read. A row has 1, 2, 4, ... up to `count`
    symbols. What was said before is not shown.

    Args:
        count: symbols to copy at most.
        symbols: different symbols.

    Source: Gu and Dao, 2023, arXiv:2312.00752, section 4.1.1 (there 16 of 16 different symbols among 4,096 tokens).
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
        context = [0] * (length - count)
        for place, symbol in zip(sorted(random.sample(range(len(context)), count)), copied, strict=True):
            context[place] = symbol
        tokens = context + [self.symbols + 1] * count
        return Row(tokens, [IGNORED] * len(context) + copied, [count] * length)
