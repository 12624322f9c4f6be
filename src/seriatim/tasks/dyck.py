"""Nested brackets of several kinds."""

from random import Random

from seriatim.core.errors import check_size
from seriatim.tasks.base import Row, TokenTask

__all__ = ["Dyck"]


class Dyck(TokenTask):
    """Dyck-k: brackets of k kinds, properly nested; after every token, which bracket closes the innermost open one.

        ( [ ] {     after each: ) ] ) }     and 0 where none is open

    The sequence opens or closes with equal chances; it opens where none is open, and closes at the greatest depth. The
    level is how many brackets are open.

    Args:
        kinds: k, kinds of brackets.
        depth: brackets open at once at most.

    Source: Hewitt et al., 2020, arXiv:2010.07515.
    """

    difficulty = "depth"

    def __init__(self, kinds: int = 2, depth: int = 8):
        check_size(kinds=kinds, depth=depth)
        self.kinds, self.depth = kinds, depth
        self.vocab_size = 1 + 2 * kinds

    def row(self, length: int, random: Random) -> Row:
        tokens, targets, levels = list[int](), list[int](), list[int]()
        closing: list[int] = []
        for _ in range(length):
            if not closing or (len(closing) < self.depth and random.getrandbits(1)):
                kind = random.randint(1, self.kinds)
                tokens.append(kind)
                closing.append(kind + self.kinds)
            else:
                tokens.append(closing.pop())
            targets.append(closing[-1] if closing else 0)
            levels.append(len(closing))
        return Row(tokens, targets, levels)
