"""Trains several mixers on one task, at equal numbers of parameters and in equal time, and says how well each did.

Held parameters: the widths are chosen so that all models have as many, and all make the same number of updates
(--train.steps). Held time: all have the width --model.dim, and all are trained for --train.minutes. Each is trained
from several seeds; figures are means and standard deviations. What was stopped goes on: --out FOLDER --resume.
"""

from typing import TYPE_CHECKING, Any

from seriatim.cli.options import add_model_options, add_training_options, stored_config
from seriatim.cli.task_options import add_task_options, model_of_task
from seriatim.cli.train_task import OF_TEXT, TRAINING

if TYPE_CHECKING:
    from seriatim.cli.parsing import Parser

__all__ = ["add_arguments", "run"]

MODEL = {"dim": 64, "expansion": 2.0}
BUDGET = {"steps": 300, "minutes": 0.2, "evaluate_every": 0}


def add_arguments(parser: "Parser") -> None:
    """The mixers, what is held equal, the task, the lengths, the rest of the model, the training settings."""
    stored = stored_config(parser.given, ("compare", "task", "lengths", "model", "train"))
    kept = stored.get("compare", {})
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    parser.add_argument("--out", type=str | None, metavar="FOLDER", help="a folder; it must be new or empty")
    parser.add_argument("--resume", action="store_true", help="go on with the comparison in --out")
    parser.add_argument(
        "--mixers",
        type=Any,
        metavar="YAML",
        default=kept.get("mixers", ["gla", "lstm", "mamba", "attention"]),
        help="a name or {mixer: NAME, option: value} for each",
    )
    parser.add_argument(
        "--hold",
        type=str,
        metavar="{parameters,time,both}",
        default=kept.get("hold", "both"),
        help="what is equal; both: one after the other",
    )
    parser.add_argument("--seeds", type=int, metavar="N", default=kept.get("seeds", 3), help="trainings of each")
    parser.add_argument("--depth", type=int, metavar="N", default=kept.get("depth", 2), help="layers of a model")
    parser.add_argument(
        "--parameters",
        type=int,
        metavar="N",
        default=kept.get("parameters", 0),
        help="how many where they are held; 0: as many as the first mixer has at the width --model.dim",
    )
    add_task_options(parser, stored)
    add_model_options(parser, stored.get("model", MODEL), ("layers",), model_of_task(parser, stored))
    add_training_options(parser, stored.get("train", {**TRAINING, **BUDGET}), OF_TEXT)


def run(options: Any) -> int:
    """Compares."""
    from seriatim.cli.compare.main_job import main_job

    return main_job(options)
