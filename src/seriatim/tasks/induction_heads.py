"""The induction-heads task."""

from random import Random

from seriatim.core.errors import check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask

__all__ = ["InductionHeads"]


class InductionHeads(TokenTask):
    """Induction heads: a special token comes twice, the second time at the end; what followed it the first time?

        a b c * d e ... f *     after the second *: d

    The level is how many tokens lie between the two. All other tokens are random.

    Args:
        symbols: different tokens besides the special one.

    Source: Gu and Dao, 2023, arXiv:2312.00752, section 4.1.2 (there 16 symbols, trained at length 256).
    """

    difficulty = "gap"
    shortest = 3

    def __init__(self, symbols: int = 16):
        check_size(symbols=symbols)
        self.symbols = symbols
        self.vocab_size = symbols + 1

    def row(self, length: int, random: Random) -> Row:
        tokens = [random.randint(1, self.symbols) for _ in range(length)]
        first = random.randrange(length - 2)
        tokens[first] = tokens[-1] = 0
        return Row(tokens, [IGNORED] * (length - 1) + [tokens[first + 1]], [length - 2 - first] * length)
