"""Accuracy on a task by length and by difficulty: the table and the picture."""

import sys
from collections.abc import Mapping, Sequence
from colorsys import hsv_to_rgb
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["COLOURS", "describe", "draw", "finish", "level_names", "many_colours", "percent", "plain_text", "table"]

WIDTH = 150  # where no terminal says one
COLOURS = ("#1b6ca8", "#c8553d", "#2a9d5c", "#8e5ea2", "#d99a1c", "#4d4d4d")


def table(results: Mapping[str, Any]) -> str:
    """A row a length: all answers, whole sequences, the best constant answer, and answers by difficulty."""
    rows, trained = results["lengths"], results["config"]["lengths"]
    levels = level_names(rows)
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("length")
    for name in ("answers", "right", "whole sequences", "best constant", *levels.values()):
        shown.add_column(name, justify="right")
    for row in rows:
        inside = trained["shortest"] <= row["length"] <= trained["longest"]
        by_level = {(level["from"], level["to"]): percent(level["accuracy"]) for level in row["levels"]}
        figures = [percent(row[name]) for name in ("accuracy", "whole", "baseline")]
        cells = [by_level.get(level, "") for level in levels]
        shown.add_row(f"{row['length']}{' (trained)' if inside else ''}", f"{row['answers']:,}", *figures, *cells)
    return plain_text(shown, f"{_title(results)}\nThe last {len(levels)} columns: right by {results['difficulty']}.")


def draw(results: Mapping[str, Any], out: Path) -> list[Path]:
    """accuracy.png in `out`; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("seriatim: no picture: matplotlib is not installed (pip install seriatim[viz])", file=sys.stderr)
        return []
    figure = Figure(figsize=(9.6, 4.2), dpi=150, layout="constrained")
    by_length, by_level = figure.subplots(1, 2, sharey=True)
    rows, trained = results["lengths"], results["config"]["lengths"]
    lengths = [row["length"] for row in rows]
    by_length.axvspan(trained["shortest"], trained["longest"], color="#eef2f7", zorder=0, label="trained lengths")
    by_length.plot(lengths, [row["accuracy"] for row in rows], color=COLOURS[0], marker="o", label="answers")
    whole = [row["whole"] for row in rows]
    by_length.plot(lengths, whole, color=COLOURS[1], marker="s", markersize=4, label="whole sequences")
    constant = [row["baseline"] for row in rows]
    by_length.plot(lengths, constant, color="#6b7280", linestyle="--", label="best constant answer")
    by_length.set_xscale("log", base=2)
    by_length.set_xticks(lengths, [str(length) for length in lengths])
    by_length.set_xlabel("length")
    by_length.set_ylabel("share that is right")
    names = list(level_names(rows).items())
    for row, colour in zip(rows, _colours(len(rows)), strict=True):
        shares = {(level["from"], level["to"]): level["accuracy"] for level in row["levels"]}
        places = [(place, shares[level]) for place, (level, _) in enumerate(names) if level in shares]
        by_level.plot(*zip(*places, strict=True), color=colour, marker="o", label=f"length {row['length']}")
    by_level.set_xticks(range(len(names)), [name for _, name in names], fontsize=8)
    by_level.set_xlabel(results["difficulty"])
    for axes in (by_length, by_level):
        finish(axes)
    figure.suptitle(_title(results), fontsize=10)
    figure.savefig(out / "accuracy.png")
    return [out / "accuracy.png"]


def many_colours(count: int) -> list[str]:
    """So many that can be told apart: those of all pictures first, then others from all around the circle."""
    more = max(0, count - len(COLOURS))
    circle = [_hex(hsv_to_rgb((index / more + 0.08) % 1, 0.55, 0.55 + 0.3 * (index % 2))) for index in range(more)]
    return [*COLOURS, *circle][:count]


def _hex(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour)


def finish(axes: Any) -> None:
    """The look of all pictures of accuracy. A long legend stands beside the picture, not in it."""
    axes.set_ylim(-0.03, 1.03)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.minorticks_off()
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if len(axes.get_legend_handles_labels()[1]) > 6 else {}
    axes.legend(fontsize=8, frameon=False, **beside)


def level_names(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[int, int], str]:
    """The ranges of difficulty in all rows, in order, and how they are written."""
    ranges = sorted({(level["from"], level["to"]) for row in rows for level in row["levels"]})
    return {(least, most): str(least) if least == most else f"{least}-{most}" for least, most in ranges}


def percent(share: float) -> str:
    """With one decimal; never 100 % but where nothing was wrong."""
    return f"{min(100 * share, 99.9) if share < 1 else 100:.1f}%"


def plain_text(shown: Table, title: str) -> str:
    """The table under its title, as wide as the terminal."""
    terminal = Console()
    console = Console(width=None if terminal.is_terminal else WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(shown)
    return "\n".join([title, *(line.rstrip() for line in captured.get().splitlines())])


def describe(options: Mapping[str, Any], kind: str) -> str:
    """A spec in a few words: its name and its options."""
    rest = ", ".join(_option(name, value) for name, value in options.items() if name != kind and value != "")
    return f"{options[kind]} ({rest})" if rest else str(options[kind])


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"not {name}"
    return f"{name} {value}"


def _title(results: Mapping[str, Any]) -> str:
    config = results["config"]
    layers = ", ".join(
        layer if isinstance(layer, str) else describe(layer, "mixer") for layer in config["model"]["layers"]
    )
    trained = f"{results['parameters']:,} parameters, {results['steps']:,} steps, {results['seconds']:.0f} s"
    return f"{describe(config['task'], 'task')}: {layers}; {trained}"


def _colours(count: int) -> list[str]:
    """From dark to light."""
    shades = ("#0b3c5d", "#1b6ca8", "#4f9bd0", "#8fc1e3", "#b9d9ee", "#d6e8f4")
    return [shades[min(index, len(shades) - 1)] for index in range(count)]
