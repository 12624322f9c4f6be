"""The demo's two pictures: how the models learn, and what they carry."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_learning", "draw_memory"]

COLOURS = ("#1b6ca8", "#c8553d")
GREY = "#6b7280"


def draw_learning(models: Sequence[Mapping[str, Any]], compressors: Mapping[str, float], path: Path) -> None:
    """Validation bits per byte against seconds of training, with a level line for each compressor."""
    figure, axes = _axes()
    highest = max(model["curve"][-1][1] for model in models)
    for model, colour in zip(models, COLOURS, strict=True):
        seconds, bits = zip(*model["curve"], strict=True)
        axes.plot(seconds, bits, color=colour, marker="o", markersize=4, linewidth=2)
        height = 3 if bits[-1] == highest else -9  # apart from each other, however close the ends
        _label_end(axes, seconds[-1], bits[-1], f"{model['name']}  {bits[-1]:.2f}", colour, height)
    right = max(model["curve"][-1][0] for model in models)
    for level in compressors.values():
        axes.axhline(level, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    _label_levels(axes, compressors)
    everything = [bits for model in models for _, bits in model["curve"]] + list(compressors.values())
    axes.set_ylim(min(everything) * 0.88, min(8.2, max(everything) * 1.04))
    axes.set_xlim(0, right * 1.24)
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("validation bits per byte (lower is better)")
    _save(figure, path)


def draw_memory(models: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Bytes of state against tokens read, both on logarithmic scales."""
    figure, axes = _axes()
    for model, colour in zip(models, COLOURS, strict=True):
        tokens = [row["tokens"] for row in model["memory"]]
        megabytes = [row["state_bytes"] / 1e6 for row in model["memory"]]
        axes.loglog(tokens, megabytes, color=colour, marker="o", markersize=4, linewidth=2)
        _label_end(axes, tokens[-1], megabytes[-1], f"{model['name']}  {megabytes[-1]:.2f} MB", colour)
    axes.set_xlim(tokens[0] * 0.9, tokens[-1] * 4.5)
    axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("tokens read")
    axes.set_ylabel("megabytes carried")
    _save(figure, path)


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.3), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _label_levels(axes: Any, levels: Mapping[str, float]) -> None:
    """One label under the lowest line: the lines may be too close for a label each."""
    text = ", ".join(f"{name} {level:.2f}" for name, level in sorted(levels.items(), key=lambda item: -item[1]))
    lowest = min(levels.values())
    axes.annotate(text, (0, lowest), xytext=(4, -11), textcoords="offset points", color=GREY, fontsize=9)


def _label_end(axes: Any, x: float, y: float, text: str, colour: str, height: int = -3) -> None:
    axes.annotate(
        text, (x, y), xytext=(7, height), textcoords="offset points", color=colour, fontsize=9.5, fontweight="bold"
    )


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path)
