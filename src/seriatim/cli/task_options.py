"""Options that choose a task and the lengths of its sequences."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from seriatim.cli.options import add_part_options
from seriatim.cli.parsing import Parser
from seriatim.cli.sources import describe
from seriatim.core.errors import SeriatimError, check_size

if TYPE_CHECKING:
    from seriatim.tasks.base import Task

__all__ = ["Lengths", "add_task_options", "chosen_lengths", "chosen_task", "model_of_task"]

LONGEST = 64  # tokens, where the task does not say


class Lengths(NamedTuple):
    """Tokens of a sequence: from `shortest` to `longest` in training; `tested`, in order; and how many are tested."""

    shortest: int
    longest: int
    tested: list[int]
    sequences: int


def add_task_options(parser: Parser, stored: Mapping[str, Any]) -> None:
    """--task.name with that task's own options, and --lengths.*. `stored` is a run's config, or empty."""
    tasks = {part.name: part for part in describe("task")}
    defaults = dict(stored.get("task", {}))
    kept_name = defaults.pop("task", None)
    name = _given_name(parser, kept_name)
    group = parser.add_argument_group(
        "task (seriatim list tasks tells what each is; its options are shown beside its name)"
    )
    group.add_argument(
        "--task.name", type=str | None, metavar="NAME", default=kept_name, help=f"one of {', '.join(tasks)}"
    )
    if name in tasks:
        add_part_options(parser, group, "task", tasks[name], defaults)
    group = parser.add_argument_group("lengths, in tokens")
    kept = stored.get("lengths", {})
    for option, kind, default, text in (
        ("longest", int, 0, f"the longest sequence in training; 0: the task's own, or {LONGEST}"),
        ("shortest", int, 0, "the shortest; 0: a quarter of the longest"),
        (
            "tested",
            list[int],
            [],
            "the lengths tested; []: the task's own, or 1/2, 1, 2 and 4 times the longest",
        ),
        ("sequences", int, 256, "how many of each length are tested"),
    ):
        metavar = "N" if kind is int else "[N, N]"
        shown = kept.get(option, default)
        group.add_argument(f"--lengths.{option}", type=kind, metavar=metavar, default=shown, help=text)


def model_of_task(parser: Parser, stored: Mapping[str, Any]) -> str:
    """The name of the model that reads the sequences of the task on the command line."""
    name = _given_name(parser, stored.get("task", {}).get("task"))
    bases = next((part.bases for part in describe("task") if part.name == name), ())
    return "classifier" if {"SeriesTask", "StoredTask"} & set(bases) else "language_model"


def chosen_task(options: Any) -> "Task":
    """The task that the options describe."""
    from seriatim.core.build import build, names
    from seriatim.tasks.base import Task

    given = options.task.as_dict()
    name = given.pop("name", None)
    if not name:
        raise SeriatimError(f"--task.name is not given; it must be one of {', '.join(names('task'))}")
    task = build({"task": name, **given})
    if not isinstance(task, Task):
        raise SeriatimError(f"--task.name is {name!r}, which does not make sequences of tokens, as this command needs")
    return task


def chosen_lengths(options: Any, task: "Task") -> Lengths:
    """The lengths, checked: the task can make all of them."""
    given = options.lengths.as_dict()
    longest, tested = given["longest"] or task.length or LONGEST, given["tested"]
    check_size(longest=longest, sequences=given["sequences"])
    if task.length and (longest != task.length or given["shortest"] not in (0, task.length)):
        raise SeriatimError(
            f"shortest is {given['shortest']} and longest is {longest}; all sequences of this task have {task.length} "
            "elements, so leave both out"
        )
    shortest = given["shortest"] or min(longest, max(task.shortest, longest // 4))
    if not task.shortest <= shortest <= longest:
        raise SeriatimError(
            f"shortest is {shortest} and longest is {longest}; shortest must be from {task.shortest}, the least that "
            "the task needs, to longest"
        )
    usual = [task.length] if task.length else [max(shortest, longest // 2), longest, 2 * longest, 4 * longest]
    lengths = Lengths(shortest, longest, tested or sorted(set(usual)), given["sequences"])
    for length in (longest, *lengths.tested):
        task.sample(1, length)
    return lengths


def _given_name(parser: Parser, stored: str | None) -> str | None:
    """The task named on the command line, in its YAML file, or by the run that is gone on with."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--task.name", dest="name")
    peek.add_argument("--config")
    try:
        known, _ = peek.parse_known_args(list(parser.given))
        if known.name or not known.config:
            return known.name or stored
        return yaml.safe_load(Path(known.config).read_text(encoding="utf-8"))["task"]["name"]
    except (argparse.ArgumentError, OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return stored  # the parser says what is wrong
