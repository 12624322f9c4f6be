"""Needles in a haystack."""

from random import Random

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask, powers_of_two

__all__ = ["Needle"]


class Needle(TokenTask):
    """Needle retrieval: several keys with their values lie in a text of random words; at the end one key is asked for.

        w w KEY k1 v v w w w KEY k2 v v w ... ? k1 v     after the key and each value: the next value

    The level is the number of needles, 1, 2, 4, ... up to `needles`, as many as fit.

    Args:
        needles: keys in a sequence at most.
        values: value tokens of a needle.
        keys: different keys, and different value tokens.
        filler: different words of the text.

    Source: Hsieh et al., 2024, arXiv:2404.06654, section 3 (multi-keys retrieval).
    """

    difficulty = "needles"

    def __init__(self, needles: int = 4, values: int = 2, keys: int = 32, filler: int = 32):
        check_size(needles=needles, values=values, keys=keys, filler=filler)
        if needles > keys:
            raise SeriatimError(f"needles is {needles}; it must be at most keys, which is {keys}")
        self.needles, self.values, self.keys, self.filler = needles, values, keys, filler
        self.vocab_size = 2 + 2 * keys + filler
        self.shortest = 3 + 2 * values

    def row(self, length: int, random: Random) -> Row:
        text = length - 1 - self.values  # before the question: its mark, the key, and all values but the last
        count = random.choice(powers_of_two(1, min(self.needles, text // (2 + self.values))))
        keys = random.sample(range(2, 2 + self.keys), count)
        values = [random.choices(range(2 + self.keys, 2 + 2 * self.keys), k=self.values) for _ in keys]
        parts = [[0, key, *value] for key, value in zip(keys, values, strict=True)]
        words = text - count * (2 + self.values)
        parts += [[random.randrange(2 + 2 * self.keys, self.vocab_size)] for _ in range(words)]
        random.shuffle(parts)
        asked = random.randrange(count)
        tokens = [token for part in parts for token in part] + [1, keys[asked], *values[asked][:-1]]
        return Row(tokens, [IGNORED] * (length - self.values) + values[asked], [count] * length)
