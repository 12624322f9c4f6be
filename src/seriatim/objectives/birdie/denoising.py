"""Ways to make a question and its answer of a text, of which Birdie trains a mixture.

Of the text "bird songs fill the early morning air", where <0>, <1> are masks:

    NextToken         bird songs fill ...                     each token tells the next
    PrefixLM          bird songs fill                      -> the early morning air
    Infilling         bird <0> the early <1>               -> songs fill <0> morning air <1>
    Copying           bird songs ... air                   -> bird songs ... air
    Deshuffling       morning air early fill bird songs the -> bird songs ... air
    Autoencoding      bird <0> the early <1>               -> bird songs ... air
     with deshuffle   the early <0> bird <1>               -> bird songs ... air
    SelectiveCopying  [context] bird songs ... air [copy] [start] bird [end] the -> songs fill [done]

Source: Blouir et al., 2024, arXiv:2411.01030, table 1 and sections 3.2, A.2 and A.5. Lengths and counts of spans are
exact here, as T5 draws them (arXiv:1910.10683), where the official code draws each by itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import ClassVar

from seriatim.core.errors import SeriatimError, check_number, check_size
from seriatim.objectives.birdie.special import SpecialTokens

__all__ = [
    "Autoencoding",
    "Copying",
    "Denoising",
    "Deshuffling",
    "Infilling",
    "NextToken",
    "PrefixLM",
    "SelectiveCopying",
]

SPAN = range(4, 33)  # tokens of a selected span
DELIMITER = range(1, 9)  # tokens before and behind it that are given


@dataclass(frozen=True, kw_only=True)
class Denoising(ABC):
    """A kind of objective with its parameters.

    Args:
        length: tokens of the text.
    """

    least: ClassVar[int] = 2  # tokens that the text must have

    length: int

    def __post_init__(self) -> None:
        check_size(length=self.length)
        if self.length < self.least:
            raise SeriatimError(f"length is {self.length}; {type(self).__name__} needs at least {self.least} tokens")

    @property
    def paradigm(self) -> str | None:
        """The name of the token that says which objective it is; None where it has none."""
        return None

    @abstractmethod
    def pair(self, text: Sequence[int], special: SpecialTokens, random: Random) -> tuple[list[int], list[int]]:
        """The question, without the tokens that say what it is and where it ends, and the answer."""


@dataclass(frozen=True, kw_only=True)
class NextToken(Denoising):
    """Tell each token from those before: no question, and no paradigm token, as in table 6."""

    def pair(self, text: Sequence[int], special: SpecialTokens, random: Random) -> tuple[list[int], list[int]]:
        return [], list(text)


@dataclass(frozen=True, kw_only=True)
class PrefixLM(Denoising):
    """Write how a text goes on. share: of the text, the part that is given."""

    share: float = 0.75
    paradigm = "prefix_lm"

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("share", self.share)

    def pair(self, text: Sequence[int], special: SpecialTokens, random: Random) -> tuple[list[int], list[int]]:
        given = min(max(1, int(self.share * len(text))), len(text) - 1)
        return list(text[:given]), list(text[given:])


@dataclass(frozen=True, kw_only=True)
class Masking(Denoising):
    """Hides spans. rate: of the text, the part that is hidden. span: mean tokens of a span."""

    rate: float = 0.15
    span: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("rate", self.rate)
        check_size(span=self.span)

    @property
    def spans(self) -> int:
        """How many spans are hidden."""
        return min(max(1, round(self._hidden / self.span)), self.length - self._hidden)

    @property
    def _hidden(self) -> int:
        return min(max(1, round(self.rate * self.length)), self.length - 1)

    def pieces(self, text: Sequence[int], random: Random) -> tuple[list[list[int]], list[list[int]]]:
        """What is seen, spans + 1 pieces (the first and the last may be empty), and the hidden spans between them."""
        hidden = _parts(self._hidden, self.spans, random)
        seen = _parts(self.length - self._hidden + 2, self.spans + 1, random)
        seen[0], seen[-1] = seen[0] - 1, seen[-1] - 1
        sizes = [size for pair in zip(seen, [*hidden, 0], strict=True) for size in pair]
        rest = iter(text)
        cut = [[next(rest) for _ in range(size)] for size in sizes]
        return cut[::2], cut[1:-1:2]


@dataclass(frozen=True, kw_only=True)
class Infilling(Masking):
    """Write the hidden spans, each followed by its mask: span corruption (arXiv:1910.10683)."""

    paradigm = "infilling"

    def pair(self, text: Sequence[int], special: SpecialTokens, random: Random) -> tuple[list[int], list[int]]:
        seen, hidden = self.pieces(text, random)
        answer = [token for index, span in enumerate(hidden) for token in (*span, special.mask(index))]
        return _between_masks(seen, special), answer


@dataclass(frozen=True, kw_only=True)
class Autoencoding(Masking):
    """Write the whole text, of which spans are hidden. deshuffle: what is seen of it is in any order, too."""

    deshuffle: bool = False

    @property
    def paradigm(self) -> str:
        return "autoencoding_deshuffling" if self.deshuffle else "autoencoding"

    def pair(self, text: Sequence[int], special: SpecialTokens, random: Random) -> tuple[list[int], list[int]]:
        seen, _ = self.pieces(text, random)
        if self.deshuffle:
            places = [place for place, piece in enumerate(seen) if piece]
            pieces = [seen[place] for place in random.sample(places, len(places))]
            for place, piece in zip(places, pieces, strict=True):
                seen[place] = piece
        return _between_masks(seen, special), list(text)


@dataclass(frozen=True, kw_only=True)
class Copying(Denoising):
    """Write the text again."""

    paradigm = "copying"

    def pair(self, text: Sequence[int], special: SpecialTokens, random: Random) -> tuple[list[int], list[int]]:
        return list(text), list(text)


@dataclass(frozen=True, kw_only=True)
class Deshuffling(Denoising):
    """Bring tokens into order. rate: of the text, the part whose tokens change places at random."""

    rate: float = 1.0
    paradigm = "deshuffling"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate != 1:
            _check_share("rate", self.rate)

    def pair(self, text: Sequence[int], special: SpecialTokens, random: Random) -> tuple[list[int], list[int]]:
        places = random.sample(range(len(text)), round(self.rate * len(text)))
        shuffled = list(text)
        for place, other in zip(sorted(places), places, strict=True):
            shuffled[place] = text[other]
        return shuffled, list(text)


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(Denoising):
    """Find spans by what stands before and behind them.

    spans: how many, which do not overlap, asked for in any order. query_first: the question comes before the text.
    """

    least = SPAN[0] + 2

    spans: int = 1
    query_first: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_size(spans=self.spans)
        if self.length < self.spans * (SPAN[0] + 1) + 1:
            raise SeriatimError(f"spans is {self.spans}; a text of {self.length} tokens has no room for so many")

    def pair(self, text: Sequence[int], special: SpecialTokens, random: Random) -> tuple[list[int], list[int]]:
        longest = min(SPAN[-1], (len(text) - self.spans - 1) // self.spans)
        sizes = [random.randint(SPAN[0], longest) for _ in range(self.spans)]
        gaps = _parts(len(text) - sum(sizes), self.spans + 1, random)
        starts = [sum(gaps[: index + 1]) + sum(sizes[:index]) for index in range(self.spans)]
        query, answer = [], []
        for start, size in random.sample(list(zip(starts, sizes, strict=True)), self.spans):
            before = text[max(0, start - random.choice(DELIMITER)) : start]
            behind = text[start + size : start + size + random.choice(DELIMITER)]
            query += [special.mark("copy"), special.mark("start"), *before, special.mark("end"), *behind]
            answer += [*text[start : start + size], special.mark("done")]
        context = [special.mark("context"), *text]
        return (query + context if self.query_first else context + query), answer


def _between_masks(seen: list[list[int]], special: SpecialTokens) -> list[int]:
    masked = [token for index, piece in enumerate(seen[:-1]) for token in (*piece, special.mask(index))]
    return masked + seen[-1]


def _parts(total: int, count: int, random: Random) -> list[int]:
    """Random whole numbers above 0, `count` of them, whose sum is `total`."""
    cuts = [0, *sorted(random.sample(range(1, total), count - 1)), total]
    return [high - low for low, high in pairwise(cuts)]


def _check_share(name: str, value: float) -> None:
    check_number(**{name: value})
    if not 0 < value < 1:
        raise SeriatimError(f"{name} is {value}; it must be above 0 and below 1")
