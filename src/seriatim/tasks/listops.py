"""ListOps: nested operations on lists of digits."""

from random import Random
from statistics import median

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask

__all__ = ["ListOps"]

OPERATIONS = ("MIN", "MAX", "MED", "SM")
CLOSE, EQUALS = 14, 15


class ListOps(TokenTask):
    """ListOps: a nested expression of MIN, MAX, MED (median, rounded down) and SM (sum modulo 10), then its value.

        [MAX 2 9 [MIN 4 7 ] 0 ] =     after =: 9

    An argument is a digit with probability 1/4, at the greatest depth, and where no more than a digit fits; otherwise
    an expression. Its tokens are shared out among its arguments. The level is the depth of the expression.

    Args:
        depth: operations inside one another at most.
        arguments: of an operation at most.

    Source: Nangia and Bowman, 2018, arXiv:1804.06028; operations and chances as in arXiv:2011.04006 (there depth 10, 10
    arguments).
    """

    difficulty = "depth"
    shortest = 5

    def __init__(self, depth: int = 5, arguments: int = 5):
        check_size(depth=depth, arguments=arguments)
        if arguments < 2:
            raise SeriatimError(f"arguments is {arguments}; it must be 2 or more")
        self.depth, self.arguments = depth, arguments
        self.vocab_size = 16

    def row(self, length: int, random: Random) -> Row:
        tokens, value, depth = self._expression(length - 1, 1, random)
        return Row([*tokens, EQUALS], [IGNORED] * len(tokens) + [value], [depth] * (len(tokens) + 1))

    def _expression(self, budget: int, depth: int, random: Random) -> tuple[list[int], int, int]:
        """At most `budget` tokens whose first operation stands at `depth`, their value, and how deep they go."""
        operation = random.randrange(len(OPERATIONS))
        left, count = budget - 2, random.randint(2, min(self.arguments, budget - 2))
        tokens, values, deepest = [10 + operation], list[int](), depth
        for after in reversed(range(count)):
            share = left // (after + 1)
            if share < 4 or depth == self.depth or random.random() < 0.25:
                written, value, reached = _digit(random)
            else:
                written, value, reached = self._expression(share, depth + 1, random)
            tokens += written
            values.append(value)
            left -= len(written)
            deepest = max(deepest, reached)
        return [*tokens, CLOSE], _apply(OPERATIONS[operation], values), deepest


def _digit(random: Random) -> tuple[list[int], int, int]:
    digit = random.randrange(10)
    return [digit], digit, 0


def _apply(operation: str, values: list[int]) -> int:
    results = {"MIN": min(values), "MAX": max(values), "MED": int(median(values)), "SM": sum(values) % 10}
    return results[operation]
