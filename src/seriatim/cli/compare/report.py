"""The table and the picture of a comparison, from what report.json holds."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from seriatim.cli.task_report import describe, finish, level_names, many_colours, percent, plain_text

__all__ = ["draw", "error_bars", "table"]


def table(results: Mapping[str, Any]) -> str:
    """For each condition a row a mixer: its size, its training, and accuracy by length."""
    parts = [describe(results["config"]["task"], "task")]
    trained, seeds = results["config"]["lengths"], results["config"]["compare"]["seeds"]
    for held, rows in _by_condition(results).items():
        shown = Table("mixer", box=None, pad_edge=False, header_style="dim")
        lengths = [row["length"] for row in _any(rows)]
        for name in (
            "width",
            "expansion",
            "parameters",
            "steps",
            "seconds",
            *(f"length {length}" for length in lengths),
        ):
            shown.add_column(name, justify="right")
        for row in sorted(rows, key=_rank):
            steps, seconds = f"{row['steps']['mean']:,.0f}", f"{row['seconds']['mean']:.1f}"
            cells = [_share(length["accuracy"]) for length in row["lengths"]] or ["failed"]
            size = str(row["dim"]), f"{row['expansion']:g}", f"{row['parameters']:,}"
            shown.add_row(row["mixer"], *size, steps, seconds, *cells)
        constant = [percent(length["baseline"]["mean"]) for length in _any(rows)]
        shown.add_row("best constant answer", *[""] * 5, *constant, style="dim")
        parts += ["", plain_text(shown, f"{_title(held)}. Right answers, mean and deviation of {seeds} seeds:")]
    one = trained["shortest"] == trained["longest"]
    said = f"length {trained['longest']}" if one else f"lengths {trained['shortest']} to {trained['longest']}"
    parts += ["", f"Trained on {said}."]
    parts += [f"{row['mixer']}, equal {row['held']}: {line}" for row in results["rows"] for line in row["failed"]]
    return "\n".join(parts)


def draw(results: Mapping[str, Any], out: Path) -> list[Path]:
    """accuracy.png in `out`: a row of pictures a condition, by length and by difficulty."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("seriatim: no picture: matplotlib is not installed (pip install seriatim[viz])", file=sys.stderr)
        return []
    conditions = {held: rows for held, rows in _by_condition(results).items() if _any(rows)}
    if not conditions:
        return []
    figure = Figure(figsize=(10.4, 0.4 + 3.7 * len(conditions)), dpi=150, layout="constrained")
    grid = figure.subplots(len(conditions), 2, sharey=True, squeeze=False)
    names = list(dict.fromkeys(row["mixer"] for row in results["rows"]))
    colours = dict(zip(names, many_colours(len(names)), strict=True))
    trained = results["config"]["lengths"]
    for (held, rows), (by_length, by_level) in zip(conditions.items(), grid, strict=True):
        lengths = [row["length"] for row in _any(rows)]
        constant = [length["baseline"]["mean"] for length in _any(rows)]
        by_length.set_ylabel("share that is right")
        if len(lengths) == 1:
            _bars(by_length, rows, constant[0], colours)
        else:
            by_length.axvspan(
                trained["shortest"], trained["longest"], color="#eef2f7", zorder=0, label="trained lengths"
            )
            by_length.plot(lengths, constant, color="#6b7280", linestyle="--", label="best constant answer")
            by_length.set_xscale("log", base=2)
            by_length.set_xticks(lengths, [str(length) for length in lengths])
            by_length.set_xlabel("length")
        by_length.set_title(_title(held), fontsize=10)
        nearest = _longest_trained(_any(rows), trained["longest"])
        levels = level_names([_any(rows)[nearest]])
        for row in rows:
            if row["lengths"]:
                style = colours[row["mixer"]], row["mixer"]
                if len(lengths) > 1:
                    _curve(by_length, lengths, [length["accuracy"] for length in row["lengths"]], *style)
                _curve(by_level, range(len(levels)), row["lengths"][nearest]["levels"], *style)
        by_level.set_xticks(range(len(levels)), list(levels.values()), fontsize=8)
        by_level.set_xlabel(f"{results['difficulty']} (length {lengths[nearest]})")
        for axes in (by_length, by_level):
            finish(axes)
    figure.suptitle(describe(results["config"]["task"], "task"), fontsize=10)
    figure.savefig(out / "accuracy.png")
    return [out / "accuracy.png"]


def _bars(axes: Any, rows: Sequence[Mapping[str, Any]], constant: float, colours: Mapping[str, str]) -> None:
    """A bar a mixer, the best first: where there is one length only."""
    found = [(row["mixer"], row["lengths"][0]["accuracy"]) for row in rows if row["lengths"]]
    found.sort(key=lambda pair: -pair[1]["mean"])
    for place, (name, spread) in enumerate(found):
        axes.bar(place, spread["mean"], yerr=error_bars([spread]), color=colours[name], width=0.7, capsize=3)
    axes.axhline(constant, color="#6b7280", linestyle="--", label="best constant answer")
    axes.set_xticks(range(len(found)), [name for name, _ in found], rotation=30, ha="right", fontsize=8)


def _curve(axes: Any, places: Sequence[int], spreads: Sequence[Mapping[str, float]], colour: str, name: str) -> None:
    means = [spread["mean"] for spread in spreads]
    axes.errorbar(places, means, error_bars(spreads), color=colour, marker="o", markersize=4, capsize=3, label=name)


def error_bars(spreads: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """How far error bars go down and up: a deviation, but not below nothing right or above all."""
    return [
        [min(spread["deviation"], spread["mean"]) for spread in spreads],
        [min(spread["deviation"], 1 - spread["mean"]) for spread in spreads],
    ]


def _by_condition(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for row in results["rows"]:
        grouped.setdefault(row["held"], []).append(row)
    return grouped


def _any(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The lengths of a row that has them: the questions were the same for all."""
    return next((row["lengths"] for row in rows if row["lengths"]), [])


def _longest_trained(lengths: Sequence[Mapping[str, Any]], longest: int) -> int:
    """The index of the longest tested length that was trained on, or of the shortest of all."""
    inside = [row["length"] if row["length"] <= longest else -row["length"] for row in lengths]
    return inside.index(max(inside))


def _rank(row: Mapping[str, Any]) -> float:
    """The best first, by the mean over lengths."""
    return -sum(length["accuracy"]["mean"] for length in row["lengths"])


def _share(spread: Mapping[str, float]) -> str:
    return f"{percent(spread['mean'])} ± {100 * spread['deviation']:.1f}"


def _title(held: str) -> str:
    return "Equal parameters and steps" if held == "parameters" else "Equal width and time of training"
