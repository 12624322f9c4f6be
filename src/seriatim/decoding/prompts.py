"""Prompts for models with a memory of constant size."""

from typing import TypeVar

from seriatim.core.errors import check_size

__all__ = ["read_twice"]

Text = TypeVar("Text", str, list[int])


def read_twice(
    context: Text, question: Text, *, intro: Text | None = None, separator: Text | None = None, times: int = 2
) -> Text:
    r"""A prompt that gives the context again, now that the model knows what it is about (JRT-Prompt).

    Args:
        context: what the answer stands in, text or token ids.
        question: what comes last, and the answer follows.
        intro: what comes first, such as a mention of what will be asked.
        separator: between one reading and the next; None is a line's end for text, nothing for ids.
        times: readings of the context.

    Source: Arora et al., 2024, arXiv:2407.05483, section 3.
    """
    check_size(times=times)
    empty = context[:0]
    if separator is None:
        separator = "\n" if isinstance(context, str) else empty
    return (empty if intro is None else intro) + context + (separator + context) * (times - 1) + question
