"""Passkey retrieval."""

from random import Random

from seriatim.core.errors import check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask

__all__ = ["Passkey"]


class Passkey(TokenTask):
    """Passkey retrieval: a number stands somewhere in a text that only repeats itself; at the end it is asked for.

        w1 w2 ... wn w1 w2 KEY 4 7 1 3 w3 ... wn w1 ... ? 4 7 1     after ? and each digit: the next digit of the key

    The level is how many tokens lie between the key and the question.

    Args:
        digits: of the key.
        filler: words of the sentence that is repeated.

    Source: Mohtashami and Jaggi, 2023, arXiv:2305.16300.
    """

    difficulty = "distance"

    def __init__(self, digits: int = 4, filler: int = 16):
        check_size(digits=digits, filler=filler)
        self.digits, self.filler = digits, filler
        self.vocab_size = 12 + filler
        self.shortest = 2 * digits + 1

    def row(self, length: int, random: Random) -> Row:
        key = [random.randrange(10) for _ in range(self.digits)]
        words = length - 2 * self.digits - 1
        text = [12 + place % self.filler for place in range(words)]
        place = random.randint(0, words)
        tokens = [*text[:place], 10, *key, *text[place:], 11, *key[:-1]]
        return Row(tokens, [IGNORED] * (length - self.digits) + key, [words - place] * length)
