"""Arithmetic modulo a number, with and without brackets."""

from random import Random

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask

__all__ = ["ModularArithmetic"]


class ModularArithmetic(TokenTask):
    """Modular arithmetic: an expression of digits, + and - and *, then `=`; after it, the value modulo `modulus`.

        2 + 4 * 3 - 1 =            without brackets: * comes before + and -. The level counts the operations.
        ( ( 3 * 2 ) - ( - 4 ) ) =  with brackets: a stack is needed. The level is how deep they are nested.

    Bracketed expressions of n tokens are d, -d, (d), (-d) for n up to 4, and (left op right) for more, the left side's
    length drawn evenly.

    Args:
        modulus: digits run from 0 to modulus - 1.
        brackets: whether there are brackets.
        times: whether there is multiplication.

    Source: Grazzi et al., 2024, arXiv:2411.12537, section 5.1; Deletang et al., 2022, arXiv:2207.02098.
    """

    difficulty = "operations or depth"
    shortest = 2

    def __init__(self, modulus: int = 5, brackets: bool = False, times: bool = True):
        check_size(modulus=modulus)
        if modulus < 2:
            raise SeriatimError(f"modulus is {modulus}; it must be 2 or more")
        self.modulus, self.brackets, self.times = modulus, brackets, times
        self._operators = "+-*" if times else "+-"
        self._ids = {symbol: modulus + index for index, symbol in enumerate("+-*()=")}
        self.vocab_size = modulus + len(self._ids)

    def row(self, length: int, random: Random) -> Row:
        if self.brackets:
            written, value, level = self._bracketed(length - 1, random)
        else:
            written, value, level = self._flat((length - 2) // 2, random)
        tokens = [self._ids[part] if isinstance(part, str) else part for part in [*written, "="]]
        return Row(tokens, [IGNORED] * len(written) + [value % self.modulus], [level] * len(tokens))

    def _flat(self, operations: int, random: Random) -> tuple[list[int | str], int, int]:
        """Digits with operators between them, the value, and the number of operations."""
        first = random.randrange(self.modulus)
        written: list[int | str] = [first]
        total, product = 0, first  # what is complete, and the product that may go on
        for _ in range(operations):
            operator, digit = random.choice(self._operators), random.randrange(self.modulus)
            written += [operator, digit]
            if operator == "*":
                product = product * digit % self.modulus
            else:
                total, product = total + product, digit if operator == "+" else -digit
        return written, total + product, operations

    def _bracketed(self, length: int, random: Random) -> tuple[list[int | str], int, int]:
        """An expression of exactly `length` tokens, its value, and how deep its brackets are nested."""
        if length < 5:
            digit = random.randrange(self.modulus)
            negated = length in (2, 4)
            short: list[int | str] = ["-", digit] if negated else [digit]
            return (["(", *short, ")"] if length > 2 else short), -digit if negated else digit, int(length > 2)
        left_length = random.randint(1, length - 4)
        left, a, left_depth = self._bracketed(left_length, random)
        right, b, right_depth = self._bracketed(length - 3 - left_length, random)
        operator = random.choice(self._operators)
        value = a + b if operator == "+" else a - b if operator == "-" else a * b
        return ["(", *left, operator, *right, ")"], value % self.modulus, 1 + max(left_depth, right_depth)
