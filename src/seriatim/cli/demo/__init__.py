"""Trains a small model on Python's own source, beside a Transformer given equal time, and shows what each can do.

Prints every figure as it is measured and leaves a run folder: the checkpoint, the log, two
PNGs, report.html and demo.json.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seriatim.cli.parsing import Parser

__all__ = ["add_arguments", "run"]


def add_arguments(parser: "Parser") -> None:
    """Flags of the demo."""
    parser.add_argument("--out", type=str, default="runs/demo", help="the run folder; it must be new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace the demo that is in --out")
    parser.add_argument("--minutes", type=float, default=1.6, help="training time of each of the two models")
    parser.add_argument("--prompt", type=str, default="def ", help="what the model is given to write on from")
    parser.add_argument("--tokens", type=int, default=400, help="bytes to write")
    parser.add_argument("--seed", type=int, default=0, help="of the weights, the order of the data and the writing")


def run(options: Any) -> int:
    """Runs the demo."""
    from seriatim.cli.demo.main_job import main_job

    return main_job(options)
