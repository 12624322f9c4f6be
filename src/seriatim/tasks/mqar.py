r"""Multi-query associative recall."""

from math import log
from random import Random

from seriatim.core.errors import SeriatimError, check_positive, check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask, powers_of_two

__all__ = ["MQAR"]


class MQAR(TokenTask):
    r"""Multi-query associative recall: pairs of a key and its value are read, then every key is asked for once.

        k1 v1 k2 v2 ... kn vn . . k2 . . . k1 . ...     after each key that comes again: its value

    The second part has a slot for every two tokens; which slots ask is drawn without replacement with

    .. math:: p(\text{slot } i) \propto i^{a - 1}, \quad i = 1, 2, \dots

    so that most questions come soon and some late, as repetitions do in text. A row has 1, 2, 4, ... up to `pairs`
    pairs, as many as fit in half of it.

    Args:
        pairs: pairs of a sequence at most.
        keys: number of different keys; there are as many values.
        power: the exponent a; 1 spreads the questions evenly.
        noise: random tokens between the questions, never the row's own keys; otherwise blanks.

    Source: Arora et al., 2023, arXiv:2312.04927, section 4 and appendix (there 4,096 keys).
    """

    difficulty = "pairs"
    shortest = 4

    def __init__(self, pairs: int = 8, keys: int = 64, power: float = 0.01, noise: bool = True):
        check_size(pairs=pairs, keys=keys)
        check_positive(power=power)
        if pairs > keys:
            raise SeriatimError(f"pairs is {pairs}; it must be at most keys, which is {keys}")
        self.pairs, self.keys, self.power, self.noise = pairs, keys, power, noise
        self.vocab_size = 1 + 2 * keys

    def row(self, length: int, random: Random) -> Row:
        pairs = random.choice(powers_of_two(1, min(self.pairs, length // 4)))
        keys = random.sample(range(1, 1 + self.keys), pairs)
        values = random.sample(range(1 + self.keys, self.vocab_size), pairs)
        slots = (length - 2 * pairs) // 2
        tokens, targets = [0] * length, [IGNORED] * length
        tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
        for place in range(2 * pairs, length if self.noise else 0):
            while (drawn := random.randrange(1, self.vocab_size)) in keys:
                pass
            tokens[place] = drawn
        for key, value, slot in zip(keys, values, self._chosen(slots, pairs, random), strict=True):
            place = 2 * pairs + 2 * slot
            tokens[place], targets[place] = key, value
        return Row(tokens, targets, [pairs] * length)

    def _chosen(self, slots: int, count: int, random: Random) -> list[int]:
        """Slots drawn one after another by their weights without replacement: the first arrivals of exponential clocks
        (Efraimidis and Spirakis, 2006)."""
        arrivals = [-log(1 - random.random()) * (slot + 1) ** (1 - self.power) for slot in range(slots)]
        return sorted(range(slots), key=arrivals.__getitem__)[:count]
