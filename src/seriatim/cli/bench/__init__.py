"""Measures this library beside its peers on the same work, in one run, and against the machine's own limits.

ops: single operations. models: whole layers and models, training and writing. Ours and the peer take turns. A table is
printed, and kept in a folder with bench.json and PNGs. Peers come with `pip install 'seriatim[bench]'`; one that is not
installed is left out, and said. Status 1: something that ran failed, or gave other results than its peer.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seriatim.cli.parsing import Parser

__all__ = ["add_arguments", "run"]


def add_arguments(parser: "Parser") -> None:
    """What to measure, how long, and where the figures go."""
    parser.add_argument("what", metavar="WHAT", type=str, help="ops or models")
    parser.add_argument("--only", type=str, metavar="PATTERN", help="only rows that this regular expression finds")
    parser.add_argument("--list", action="store_true", help="print the rows and which peers are installed, and exit")
    parser.add_argument("--quick", action="store_true", help="smaller work and less of it: about a minute, no verdicts")
    parser.add_argument("--threads", type=int | None, metavar="N", help="of both sides; PyTorch's choice if not given")
    parser.add_argument("--repeats", type=int, metavar="N", default=25, help="measurements of each side at most")
    parser.add_argument("--budget", type=float | None, metavar="SECONDS", help="of the whole run; 480, or 60 if quick")
    parser.add_argument("--out", type=str | None, metavar="FOLDER", help="a new folder; runs/bench-WHAT if not given")
    parser.add_argument("--overwrite", action="store_true", help="replace the measurements that are in --out")


def run(options: Any) -> int:
    """Runs the benchmark."""
    from seriatim.cli.bench.main_job import main_job

    return main_job(options)
