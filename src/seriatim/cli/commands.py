"""The subcommands: modules with `add_arguments(parser)` and `run(options) -> int`, imported when asked for.

A module's docstring is its help, and importing it must not import torch.
"""

from typing import NamedTuple

__all__ = ["COMMANDS", "Command"]


class Command(NamedTuple):
    """A line of `seriatim --help` and the module that does the work."""

    name: str
    help: str
    module: str


COMMANDS = (
    Command("demo", "train a small model, watch it learn and write, and get a report (minutes)", "seriatim.cli.demo"),
    Command("list", "mixers, models and tasks by name, what each is and which options it takes", "seriatim.cli.list"),
    Command("train", "train a language model on a text, and keep it in a run folder", "seriatim.cli.train"),
    Command("train task", "train a model on a synthetic task, and see what it can do", "seriatim.cli.train_task"),
    Command("compare", "train several mixers on one task, at equal size and in equal time", "seriatim.cli.compare"),
    Command("generate", "write on from a prompt or from a saved state", "seriatim.cli.generate"),
    Command("evaluate", "measure a trained model on held-out text", "seriatim.cli.evaluate"),
    Command(
        "quantize", "make a trained Mamba or Mamba-2 model smaller, and measure what it lost", "seriatim.cli.quantize"
    ),
    Command("warmup", "compile the CPU kernels now, not at their first use", "seriatim.cli.warmup"),
    Command("bench", "measure ours beside its peers, and against the machine's limits", "seriatim.cli.bench"),
    Command("claims", "look whether what papers claim holds here", "seriatim.cli.claims"),
    Command("info", "what is in a run folder", "seriatim.cli.info"),
)
