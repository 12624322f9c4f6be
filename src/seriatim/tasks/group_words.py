"""Words over a group of permutations: state tracking."""

from collections.abc import Iterable
from itertools import permutations
from random import Random
from typing import Literal, TypeAlias

from seriatim.core.errors import check_one_of
from seriatim.tasks.base import Row, TokenTask

__all__ = ["GroupWords"]

Permutation: TypeAlias = tuple[int, ...]
GROUPS = ("S3", "A5", "S5")


class GroupWords(TokenTask):
    r"""Words over a permutation group: after every letter, the product of all letters so far.

    .. math:: y_t = x_t \circ y_{t-1}, \quad y_0 = \mathrm{id}, \quad (x \circ y)(i) = x(y(i))

    Elements are numbered in the order of their images; the letters are elements, by the same numbers. Words over A5 and
    S5, which are not solvable, cannot be tracked by a fixed number of layers whose transitions commute. The level is
    the number of letters read.

    Args:
        group: "S3" (6 elements), "A5" (60) or "S5" (120).
        letters: "all" elements, the "swaps" of two points (3-cycles in A5), or "two" elements that generate the group.

    Source: Merrill et al., 2024, arXiv:2404.08819, section 5; letters: arXiv:2411.12537, section 5.2.
    """

    difficulty = "letters read"

    def __init__(self, group: str = "S3", letters: Literal["all", "swaps", "two"] = "all"):
        check_one_of("group", group, GROUPS)
        check_one_of("letters", letters, ("all", "swaps", "two"))
        self.group, self.letters = group, letters
        self.elements = _elements(group)
        self.vocab_size = len(self.elements)
        number = {element: index for index, element in enumerate(self.elements)}
        self.alphabet = [number[letter] for letter in _letters(group, letters, self.elements)]
        self._products = {
            letter: [number[_compose(self.elements[letter], element)] for element in self.elements]
            for letter in self.alphabet
        }

    def row(self, length: int, random: Random) -> Row:
        word = random.choices(self.alphabet, k=length)
        products, product = [], 0  # the identity has the first images of all
        for letter in word:
            product = self._products[letter][product]
            products.append(product)
        return Row(word, products, list(range(1, length + 1)))


def _elements(group: str) -> list[Permutation]:
    every = list(permutations(range(int(group[1]))))
    return every if group[0] == "S" else [element for element in every if not _is_odd(element)]


def _letters(group: str, letters: str, elements: list[Permutation]) -> Iterable[Permutation]:
    if letters == "all":
        return elements
    if letters == "swaps":
        moved = 3 if group[0] == "A" else 2
        return [element for element in elements if sum(image != i for i, image in enumerate(element)) == moved]
    points = int(group[1])
    cycle = (*range(1, points), 0)
    swap = (1, 0, *range(2, points)) if group[0] == "S" else (1, 2, 0, *range(3, points))
    return [cycle, swap]


def _compose(x: Permutation, y: Permutation) -> Permutation:
    return tuple(x[image] for image in y)


def _is_odd(element: Permutation) -> bool:
    return sum(a > b for i, a in enumerate(element) for b in element[i + 1 :]) % 2 == 1
