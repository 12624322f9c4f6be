"""The pictures of a benchmark: how far ahead of its peer each row is, and how near to the machine's limits."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw_ratios", "draw_roofline"]

OURS, THEIRS, MISSED, GREY, LIGHT = "#1b6ca8", "#9aa3ad", "#c8553d", "#6b7280", "#e5e7eb"
PLACES = [(5, 3), (5, -9), (-12, 3), (-12, -9), (-3, 8), (-3, -14)]  # of a label beside its point


def draw_ratios(results: Mapping[str, Any], path: Path) -> None:
    """A bar a row: the peer's time over ours, with quartiles, and a mark where the target is."""
    from matplotlib.figure import Figure

    rows = _numbered(results)
    figure = Figure(figsize=(10.5, 1.2 + 0.36 * len(rows)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    ends = [_bar(axes, height, row, results["quick"]) for height, (_, row) in enumerate(rows)]
    lowest = 0.8 * min([0.8, *(row["ratio"]["low"] for _, row in rows)])
    axes.set_xscale("log")
    axes.set_xlim(lowest, max(ends) * (max(ends) / lowest) ** 0.35)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.xaxis.set_minor_formatter("")
    axes.axvline(1, color=GREY, linewidth=1)
    names = [f"{number}  {row['work']}\n{row['shape']}; against {row['against']}" for number, row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color=LIGHT, linewidth=0.8)
    figure.suptitle(f"seriatim bench {results['bench']}: the peer's time over ours ({_machine(results)})", fontsize=10)
    _finish(figure, axes, path)


def _bar(axes: Any, height: int, row: Mapping[str, Any], quick: bool) -> float:
    """Draws one; returns how far it reaches. A quick run's work is not what the targets speak of."""
    ratio, target = row["ratio"], None if quick else row["target"]
    text, end = f"{ratio['median']:.3g}x", max(ratio["high"], 1.0)
    axes.barh(height, ratio["median"] - 1, left=1, height=0.62, color=MISSED if row["holds"] is False else OURS)
    axes.plot([ratio["low"], ratio["high"]], [height, height], color="black", linewidth=1.1)
    if target and target["of"] == "ratio":
        axes.plot([target["least"]] * 2, [height - 0.42, height + 0.42], color="black", linewidth=1.8)
        text, end = f"{text}, target {target['least']:g}x", max(end, target["least"])
    elif target:
        text += f"; {row['share_of_peak']:.0%} of peak, target {target['least']:.0%}"
    axes.annotate(text, (end, height), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7.5)
    return end


def draw_roofline(results: Mapping[str, Any], path: Path) -> None:
    """Operations a second against operations a byte, under the limits measured in the same run."""
    from matplotlib.figure import Figure

    limits = results["limits"]
    rows = [(number, row) for number, row in _numbered(results) if row["gbytes"] and row["gflops"]]
    figure = Figure(figsize=(8.5, 6.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    points = [(row["gflops"] / row["gbytes"], row["gflops"], row["gflops"] / row["ratio"]["median"]) for _, row in rows]
    left = min([x for x, _, _ in points] + [limits["gflops"] / limits["cache_gbytes"]]) / 2
    right = 2 * max([x for x, _, _ in points] + [limits["gflops"] / limits["gbytes"]])
    _roofs(axes, limits, left, right)
    for x, ours, theirs in points:
        axes.plot([x, x], [theirs, ours], color=THEIRS, linewidth=1, zorder=2)
        axes.plot(x, theirs, marker="o", markersize=5, markerfacecolor="white", markeredgecolor=THEIRS, zorder=3)
        axes.plot(x, ours, marker="o", markersize=5.5, color=OURS, zorder=4)
    axes.plot([], [], marker="o", linestyle="", color=OURS, label="ours")
    axes.plot([], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor=THEIRS, label="the peer's")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    _label(axes, [str(number) for number, _ in rows], [(x, ours) for x, ours, _ in points])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.set_minor_formatter("")
    axes.set_xlabel("operations for each byte that is read or written once")
    axes.set_ylabel("GFLOP/s")
    axes.set_title(f"seriatim bench {results['bench']} under the machine's limits ({_machine(results)})", fontsize=10)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
    legend = "\n".join(f"{number}  {row['work']}\n    {row['shape']}; {row['against']}" for number, row in rows)
    figure.text(1.01, 0.5, legend, fontsize=6.5, va="center", ha="left", linespacing=1.3)
    _finish(figure, axes, path)


def _roofs(axes: Any, limits: Mapping[str, Any], left: float, right: float) -> None:
    for bandwidth, name, style in (("gbytes", "memory", "-"), ("cache_gbytes", "caches", "--")):
        corner = min(max(limits["gflops"] / limits[bandwidth], left), right)
        roof = [min(limits["gflops"], limits[bandwidth] * x) for x in (left, corner, right)]
        label = f"{name}: a copy at {limits[bandwidth]:.0f} GB/s"
        axes.plot([left, corner, right], roof, color=GREY, linewidth=1.4, linestyle=style, zorder=1, label=label)
    peak = f"{limits['gflops']:.0f} GFLOP/s in float32 ({limits['measured_by']})"
    beside = {"xytext": (-4, 5), "textcoords": "offset points", "ha": "right"}
    axes.annotate(peak, (right, limits["gflops"]), **beside, fontsize=8.5, color=GREY)


def _label(axes: Any, texts: Sequence[str], points: Sequence[tuple[float, float]]) -> None:
    """Each label in the place beside its point that is farthest from other points and labels."""
    shown = [tuple(point) for point in axes.transData.transform(points)]
    taken: list[tuple[float, float]] = []
    scale = axes.figure.dpi / 72
    for text, at, (x, y) in zip(texts, points, shown, strict=True):
        others = [point for point in shown if point != (x, y)] + taken

        def room(place: tuple[int, int], x: float = x, y: float = y, others: Any = others) -> float:
            here = (x + scale * (place[0] + 4), y + scale * (place[1] + 3))
            return min((math.dist(here, other) for other in others), default=0.0)

        place = max(PLACES, key=room)
        taken.append((x + scale * (place[0] + 4), y + scale * (place[1] + 3)))
        axes.annotate(text, at, xytext=place, textcoords="offset points", fontsize=7.5, color=OURS)


def _numbered(results: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    return [(number, row) for number, row in enumerate(results["rows"], 1) if row["status"] == "measured"]


def _machine(results: Mapping[str, Any]) -> str:
    threads = results["machine"]["threads"]
    return f"{threads} thread{'s' if threads > 1 else ''}, float32{', quick' if results['quick'] else ''}"


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    figure.savefig(path, bbox_inches="tight")
