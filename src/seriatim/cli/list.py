"""Prints mixers, models and tasks: the name, what it is, its options, its source."""

import textwrap
from typing import Any

from seriatim.cli.parsing import Parser
from seriatim.cli.sources import Part, describe, signature
from seriatim.core.errors import SeriatimError, nearest

__all__ = ["add_arguments", "run"]

_KINDS = {"mixers": "mixer", "models": "model", "tasks": "task"}


def add_arguments(parser: Parser) -> None:
    """One optional positional: what to list."""
    parser.add_argument("what", nargs="?", default="all", help="mixers, models or tasks; all where nothing is said")


def run(options: Any) -> int:
    """Prints them."""
    if options.what not in ("all", *_KINDS):
        raise SeriatimError(f"what is {options.what!r}; it must be one of {', '.join(nearest(options.what, _KINDS))}")
    for plural, kind in _KINDS.items():
        if options.what == "all":
            print(f"{plural}:")
        if options.what in ("all", plural):
            for part in describe(kind):
                _show(part)
    return 0


def _show(part: Part) -> None:
    lines = [part.summary, signature(part), part.source and f"source: {part.source}"]
    wrapped = [textwrap.fill(line, 118, initial_indent=" " * 18, subsequent_indent=" " * 20) for line in lines if line]
    wrapped[0] = f"{part.name:<17} {wrapped[0].lstrip()}"
    print("\n".join(wrapped))
