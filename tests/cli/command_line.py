"""What the tests of the command line share."""

import os
import sys
from typing import NamedTuple

__all__ = ["COMMAND", "ENVIRONMENT", "SMALL", "TINY_TASK", "Result"]

COMMAND = [sys.executable, "-m", "seriatim"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
SMALL = ["--model.layers", "[aaren]", "--model.dim", "8", "--train.batch", "2", "--train.window", "16"]
SMALL += ["--train.evaluate_tokens", "200", "--train.evaluate_every", "0"]
TINY_TASK = ["--model.layers", "[aaren]", "--model.dim", "8", "--train.batch", "2"]
TINY_TASK += ["--lengths.longest", "8", "--lengths.sequences", "10"]


class Result(NamedTuple):
    status: int
    out: str
    err: str
