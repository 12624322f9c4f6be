"""Runs small honest versions of what papers claim, and says of each whether it holds here.

A claim is a script claims/NNN_name.py of a checkout. Without --quick its findings are kept in claims/results/NNN.json,
and the page docs/papers.md is made anew from all of them. A claim that does not hold is published as such and is no
failure. Status 1: a script failed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seriatim.cli.parsing import Parser

__all__ = ["add_arguments", "run"]


def add_arguments(parser: "Parser") -> None:
    """Which claims, how much work, and where they are."""
    parser.add_argument("numbers", metavar="NUMBER", nargs="*", type=int, help="papers; all where none is given")
    parser.add_argument("--quick", action="store_true", help="seconds each: shows that it runs, and keeps nothing")
    parser.add_argument("--list", action="store_true", help="print what is claimed, and exit")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--folder", type=str, metavar="FOLDER", default="claims", help="where the scripts are")
    parser.add_argument("--page", type=str, metavar="FILE", default="docs/papers.md", help="made from the results")


def run(options: Any) -> int:
    """Runs them."""
    from seriatim.cli.claims.main_job import main_job

    return main_job(options)
