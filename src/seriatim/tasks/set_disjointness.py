"""Set disjointness: what do two sets have in common?"""

from random import Random
from typing import Literal

from seriatim.core.errors import SeriatimError, check_one_of, check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask

__all__ = ["SetDisjointness"]


class SetDisjointness(TokenTask):
    """Set disjointness: two sets are read that have one element in common; which?

        < a1 a2 ... | b1 b2 b3 ... ?     after the question: the element of both

    One set is short and one long. A model of small state must keep the whole first set while it reads the second, so
    the order decides how hard it is. The level is the size of the first set.

    Args:
        short: size of the short set; the long one fills the sequence.
        symbols: different elements.
        order: "short_first", "long_first", or "both", drawn for each sequence.

    Source: Arora et al., 2024, arXiv:2407.05483, section 3.
    """

    difficulty = "first set"

    def __init__(
        self, short: int = 4, symbols: int = 256, order: Literal["both", "short_first", "long_first"] = "both"
    ):
        check_size(short=short, symbols=symbols)
        check_one_of("order", order, ("both", "short_first", "long_first"))
        self.short, self.symbols, self.order = short, symbols, order
        self.vocab_size = symbols + 3
        self.shortest = 3 + 2 * short

    def row(self, length: int, random: Random) -> Row:
        long = length - 3 - self.short
        if self.short + long - 1 > self.symbols:
            raise SeriatimError(
                f"length is {length}, too long for {self.symbols} symbols; symbols must be at least {length - 4}"
            )
        drawn = random.sample(range(3, self.vocab_size), self.short + long - 1)
        first, second = drawn[: self.short], drawn[self.short - 1 :]  # the element between them is in both
        shared = drawn[self.short - 1]
        random.shuffle(first)
        random.shuffle(second)
        if self.order == "long_first" or (self.order == "both" and random.getrandbits(1)):
            first, second = second, first
        tokens = [0, *first, 1, *second, 2]
        return Row(tokens, [IGNORED] * (length - 1) + [shared], [len(first)] * length)
