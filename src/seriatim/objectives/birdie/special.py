"""The tokens that denoising needs beside those of the text."""

from dataclasses import dataclass

from seriatim.core.errors import check_size

__all__ = ["PARADIGMS", "SpecialTokens"]

MARKS = ("begin", "copy", "start", "end", "context", "done")
PARADIGMS = ("prefix_lm", "infilling", "copying", "deshuffling", "autoencoding", "autoencoding_deshuffling")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids behind those of the text, from `text` to `size` - 1: a model needs a vocabulary of `size`.

    Args:
        text: the tokenizer's ids are below it.
        masks: how many spans of one text can be hidden.
    """

    text: int
    masks: int = 32

    def __post_init__(self) -> None:
        check_size(text=self.text, masks=self.masks)

    @property
    def size(self) -> int:
        """One more than the last id."""
        return self.text + len(MARKS) + len(PARADIGMS) + self.masks

    def mark(self, name: str) -> int:
        """begin: the answer begins. copy, start, end, context, done: of selective copying."""
        return self.text + MARKS.index(name)

    def paradigm(self, name: str) -> int:
        """The token that says which objective it is."""
        return self.text + len(MARKS) + PARADIGMS.index(name)

    def mask(self, index: int) -> int:
        """The token that stands for the hidden span of that index."""
        if not 0 <= index < self.masks:
            raise IndexError(index)
        return self.text + len(MARKS) + len(PARADIGMS) + index
