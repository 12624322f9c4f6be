"""Looking up a number in a phone book."""

from random import Random

from seriatim.core.errors import SeriatimError, check_size
from seriatim.tasks.base import IGNORED, Row, TokenTask, powers_of_two

__all__ = ["PhoneBook"]


class PhoneBook(TokenTask):
    """Phone book: names with their numbers are read, then the number of one name is asked for.

        ann 4 0 7 1 bob 3 3 9 0 ... ? bob 3 3 9     after the name and each digit: the next digit

    The level is the number of entries, 1, 2, 4, ... up to `entries`, as many as fit.

    Args:
        entries: of a book at most.
        digits: of a number.
        names: different names.

    Source: Jelassi et al., 2024, arXiv:2402.01032.
    """

    difficulty = "entries"

    def __init__(self, entries: int = 32, digits: int = 4, names: int = 64):
        check_size(entries=entries, digits=digits, names=names)
        if entries > names:
            raise SeriatimError(f"entries is {entries}; it must be at most names, which is {names}")
        self.entries, self.digits, self.names = entries, digits, names
        self.vocab_size = 11 + names
        self.shortest = 2 + 2 * digits

    def row(self, length: int, random: Random) -> Row:
        fit = (length - 1 - self.digits) // (1 + self.digits)
        count = random.choice(powers_of_two(1, min(self.entries, fit)))
        names = random.sample(range(11, self.vocab_size), count)
        numbers = [[random.randrange(10) for _ in range(self.digits)] for _ in names]
        asked = random.randrange(count)
        book = [token for name, number in zip(names, numbers, strict=True) for token in (name, *number)]
        tokens = [*book, 10, names[asked], *numbers[asked][:-1]]
        return Row(tokens, [IGNORED] * (len(book) + 1) + numbers[asked], [count] * len(tokens))
