"""Counting modulo a number."""

from itertools import accumulate
from random import Random

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.base import Row, TokenTask

__all__ = ["ModularCounting"]


class ModularCounting(TokenTask):
    r"""Modular counting: after every bit, the number of ones so far modulo `modulus`.

    .. math:: y_t = \left(\sum_{s \le t} x_s\right) \bmod m

    With 2 it is parity. A linear recurrence needs complex eigenvalues for 3 and more. The level is how many ones have
    been read.

    Args:
        modulus: m, 2 or more.

    Source: Grazzi et al., 2024, arXiv:2411.12537, section 4.1 (theorem 2).
    """

    difficulty = "ones"

    def __init__(self, modulus: int = 3):
        check_size(modulus=modulus)
        if modulus < 2:
            raise SeriatimError(f"modulus is {modulus}; it must be 2 or more")
        self.modulus = modulus
        self.vocab_size = modulus

    def row(self, length: int, random: Random) -> Row:
        tokens = [random.getrandbits(1) for _ in range(length)]
        counts = list(accumulate(tokens))
        return Row(tokens, [count % self.modulus for count in counts], counts)
