"""Trains a model on a synthetic task and measures it on longer sequences than it was trained on.

The run folder gets report.json and accuracy.png beside what `seriatim train` keeps. With --resume the run goes on where
it was interrupted, with its own settings: `seriatim train task --out RUN --resume`.
"""

import json
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from seriatim.cli.options import add_model_options, add_training_options, stored_config
from seriatim.cli.parsing import Parser
from seriatim.cli.resuming import resumable
from seriatim.cli.task_options import Lengths, add_task_options, chosen_lengths, chosen_task, model_of_task
from seriatim.core.errors import SeriatimError
from seriatim.train.settings import TrainSettings

if TYPE_CHECKING:
    from seriatim.core.mixer import Mixer
    from seriatim.tasks.base import Task

__all__ = ["MODEL", "OF_TEXT", "TRAINING", "add_arguments", "run"]

MODEL = {"dim": 64, "layers": ["gla", "gla"]}
TRAINING = {"batch": 32, "learning_rate": 3e-3, "evaluate_every": 200}
OF_TEXT = ("window", "carry", "evaluate_tokens")  # settings that mean nothing here


def add_arguments(parser: Parser) -> None:
    """The run, the task, the lengths, the model's constructor, the training settings."""
    stored = stored_config(parser.given, ("task", "lengths", "model", "train"))
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    parser.add_argument("--out", type=str | None, metavar="FOLDER", help="the run folder; it must be new or empty")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    add_task_options(parser, stored)
    add_model_options(parser, stored.get("model", MODEL), model=model_of_task(parser, stored))
    add_training_options(parser, stored.get("train", TRAINING), OF_TEXT)


def run(options: Any) -> int:
    """Trains, measures, reports. Everything is checked before the run folder is touched."""
    if not options.out:
        raise SeriatimError("--out is not given; it must name the run folder (seriatim train task --help)")
    task = chosen_task(options)
    lengths = chosen_lengths(options, task)
    settings = TrainSettings(**options.train.as_dict(), window=lengths.longest)

    from seriatim.cli.task_training import build_for_task
    from seriatim.core.build import spec
    from seriatim.train.generators import seed
    from seriatim.train.run_folder import RunFolder

    seed(settings.seed)
    model = build_for_task(task, options.model.as_dict())
    config = {"task": spec(task), "lengths": lengths._asdict(), "model": spec(model), "train": settings.plain()}
    folder = RunFolder(options.out, config, options.resume)
    with resumable(f"seriatim train task --out {quote(options.out)} --resume"):
        return _fit(model, task, lengths, settings, folder)


def _fit(model: "Mixer", task: "Task", lengths: Lengths, settings: TrainSettings, folder: Any) -> int:
    from seriatim.cli.task_report import draw, table
    from seriatim.cli.task_training import measure, train_on_task

    progress = train_on_task(model, task, lengths, settings, folder).progress
    results = {
        "config": folder.config,
        "difficulty": task.difficulty,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": progress.step,
        "seconds": progress.seconds,
        "lengths": measure(model, task, lengths.tested, lengths.sequences, settings.seed),
    }
    (folder.path / "report.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    written = [folder.path / "report.json", *draw(results, Path(folder.path))]
    print(f"Kept in {', '.join(map(str, written))}", file=sys.stderr)
    return 0
