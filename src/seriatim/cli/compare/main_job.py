"""The comparison, from start to end."""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any, NamedTuple

from seriatim.cli.compare.report import draw, table
from seriatim.cli.compare.widths import sized
from seriatim.cli.errors import DIVERGED
from seriatim.cli.resuming import resumable
from seriatim.cli.task_options import Lengths, chosen_lengths, chosen_task
from seriatim.cli.task_report import describe
from seriatim.cli.task_training import build_for_task, measure, parameters_of, train_on_task
from seriatim.core.build import Spec, spec
from seriatim.core.errors import SeriatimError, check_one_of, check_size
from seriatim.tasks.base import Task
from seriatim.train.durable import write_file
from seriatim.train.generators import seed
from seriatim.train.loop import TrainingError
from seriatim.train.run_folder import RunFolder
from seriatim.train.settings import TrainSettings

__all__ = ["main_job"]

HELD = ("parameters", "time")


class Entry(NamedTuple):
    """A mixer under one of the conditions. model: options of its constructor but for what the task decides."""

    held: str
    name: str
    model: dict[str, Any]
    parameters: int
    settings: TrainSettings


def main_job(options: Any) -> int:
    """Trains, measures, prints, draws; returns the exit status. Everything is checked before anything is written."""
    if not options.out:
        raise SeriatimError("--out is not given; it must name a folder (seriatim compare --help)")
    check_one_of("hold", options.hold, (*HELD, "both"))
    check_size(seeds=options.seeds, depth=options.depth)
    if options.parameters < 0:
        raise SeriatimError(f"parameters is {options.parameters}; it must be 0 (those of the first mixer) or more")
    task = chosen_task(options)
    lengths = chosen_lengths(options, task)
    settings = TrainSettings(**options.train.as_dict(), window=lengths.longest)
    entries = _entries(options, task, settings)
    chosen = {name: getattr(options, name) for name in ("mixers", "hold", "seeds", "depth", "parameters")}
    config = {
        "compare": chosen,
        "task": spec(task),
        "lengths": lengths._asdict(),
        "model": options.model.as_dict(),
        "train": settings.plain(),
    }
    folder = RunFolder(options.out, config, options.resume)
    with resumable(f"seriatim compare --out {quote(options.out)} --resume"):
        folder.prepare()
        folder.checkpoints.rmdir()  # every run has its own
        rows = [_row(entry, list(_runs(entry, options.seeds, task, lengths, folder.path))) for entry in entries]
    results = {"config": folder.config, "difficulty": task.difficulty, "rows": rows}
    write_file(folder.path / "report.json", json.dumps(results, indent=1) + "\n")
    print(table(results))
    _note(f"Kept in {', '.join(map(str, [folder.path / 'report.json', *draw(results, folder.path)]))}")
    return DIVERGED if any(row["failed"] for row in rows) else 0


def _entries(options: Any, task: Task, settings: TrainSettings) -> list[Entry]:
    mixers = _mixers(options.mixers)
    base, entries = options.model.as_dict(), []
    plain = {name: {**base, "layers": [mixer] * options.depth} for name, mixer in mixers.items()}
    counts = {name: parameters_of(task, model) for name, model in plain.items()}
    if options.hold != "time":
        if not settings.steps:
            raise SeriatimError("steps is 0; it must be above 0 where parameters are held, or give --hold time")
        wanted = options.parameters or next(iter(counts.values()))
        by_steps = replace(settings, minutes=0.0)
        for name, mixer in mixers.items():
            model, count = sized(mixer, options.depth, task, base, wanted)
            entries.append(Entry("parameters", name, model, count, by_steps))
    if options.hold != "parameters":
        if not settings.minutes:
            raise SeriatimError("minutes is 0; it must be above 0 where time is held, or give --hold parameters")
        by_time = replace(settings, steps=0)
        entries += [Entry("time", name, model, counts[name], by_time) for name, model in plain.items()]
    return entries


def _mixers(given: Any) -> dict[str, Spec]:
    """The mixers by a name to show, which tells their options."""
    if not isinstance(given, list) or not given:
        raise SeriatimError(f"mixers is {given!r}; it must be a list such as [gla, {{mixer: window, size: 16}}]")
    named: dict[str, Spec] = {}
    for mixer in given:
        if isinstance(mixer, Mapping) and "mixer" not in mixer:
            raise SeriatimError(f"mixers has {dict(mixer)!r}; it must have the key 'mixer'")
        name = describe(mixer, "mixer") if isinstance(mixer, Mapping) else str(mixer)
        if name in named:
            raise SeriatimError(f"mixers has {name} twice; each must be there once")
        named[name] = mixer
    return named


def _runs(entry: Entry, seeds: int, task: Task, lengths: Lengths, out: Path) -> Iterator[dict[str, Any]]:
    """Trains from every seed what has not been trained yet, and gives the figures."""
    for index in range(seeds):
        settings = replace(entry.settings, seed=entry.settings.seed + index)
        place = out / f"equal-{entry.held}" / _file_name(entry.name) / f"seed-{settings.seed}"
        kept = place / "report.json"
        if kept.is_file():
            yield json.loads(kept.read_text(encoding="utf-8"))
            continue
        seed(settings.seed)
        model = build_for_task(task, entry.model)
        folder = RunFolder(
            place, {"task": spec(task), "model": spec(model), "train": settings.plain()}, resume=place.is_dir()
        )
        found: dict[str, Any] = {"seed": settings.seed}
        try:
            progress = train_on_task(model, task, lengths, settings, folder, "silent").progress
            tested = measure(model, task, lengths.tested, lengths.sequences, entry.settings.seed)
            found |= {"steps": progress.step, "seconds": progress.seconds, "lengths": tested}
            said = f"{progress.step:,} steps, {progress.seconds:.0f} s, error {progress.validation['error']:.3f}"
        except TrainingError as error:
            found |= {"failed": str(error)}
            said = f"failed: {error}"
        write_file(kept, json.dumps(found, indent=1) + "\n")
        _note(f"equal {entry.held}  {entry.name}  seed {settings.seed}: {said}")
        yield found


def _row(entry: Entry, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What report.json holds of an entry: means and standard deviations over the seeds that did not fail."""
    done = [run for run in runs if "failed" not in run]
    return {
        "held": entry.held,
        "mixer": entry.name,
        "dim": entry.model["dim"],
        "expansion": entry.model["expansion"],
        "parameters": entry.parameters,
        "failed": [run["failed"] for run in runs if "failed" in run],
        "steps": _spread([run["steps"] for run in done]),
        "seconds": _spread([run["seconds"] for run in done]),
        "lengths": [_length([run["lengths"][index] for run in done]) for index in range(len(done[0]["lengths"]))]
        if done
        else [],
        "runs": list(runs),
    }


def _length(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The same length of several runs."""
    ranges = sorted({(level["from"], level["to"]) for row in rows for level in row["levels"]})
    levels = []
    for least, most in ranges:
        found = [level["accuracy"] for row in rows for level in row["levels"] if level["from"] == least]
        levels.append({"from": least, "to": most, **_spread(found)})
    figures = {name: _spread([row[name] for row in rows]) for name in ("accuracy", "whole", "baseline")}
    return {"length": rows[0]["length"], **figures, "levels": levels}


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and standard deviation of a sample (0 for one value)."""
    if not values:
        return {"mean": float("nan"), "deviation": float("nan")}
    return {
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
