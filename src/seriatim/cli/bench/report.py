"""The table of a benchmark as text, from what bench.json holds."""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from seriatim.cli.bench.measure import missing
from seriatim.cli.bench.work import Work

__all__ = ["draw", "list_rows", "table"]

WIDTH = 150  # where no terminal says one
RIGHT = ("#", "ours, ms", "theirs, ms", "ratio", "quartiles", "GFLOP/s", "of peak", "GB/s", "at least")


def table(results: Mapping[str, Any], width: int | None = None) -> str:
    """The rows that were measured, what they were measured by, and in a line each what was not and why."""
    lines = [_rows(results, width)] if results["rows"] else []
    lines += [_limits(results), *_explained(results), *_paths(results), *_left_out(results), *_warned(results)]
    lines += _verdict(results)
    return "\n".join(lines)


def list_rows(works: Sequence[Work]) -> str:
    """The rows that there are, and which cannot be measured here."""
    shown = Table("work", "shape", "against", "at least", "", box=None, pad_edge=False, header_style="dim")
    for work in works:
        absent = missing(work)
        cells = [work.name, work.shape, work.peer.name, str(work.target or "")]
        shown.add_row(*cells, f"{' and '.join(absent)} not installed" if absent else "")
    return _text(shown, None)


def draw(results: Mapping[str, Any], out: Path) -> list[Path]:
    """The pictures, written into `out`; none where matplotlib is not installed or nothing was measured."""
    if not any(row["status"] == "measured" for row in results["rows"]):
        return []
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("seriatim: no pictures: matplotlib is not installed (pip install seriatim[viz])", file=sys.stderr)
        return []
    from seriatim.cli.bench.chart import draw_ratios, draw_roofline

    pictures = [out / "ratios.png"]
    draw_ratios(results, pictures[0])
    counted = any(row["gbytes"] and row["gflops"] for row in results["rows"])
    if results["bench"] == "ops" and counted:  # what a whole model must read and write says little
        pictures.append(out / "roofline.png")
        draw_roofline(results, pictures[1])
    return pictures


def _rows(results: Mapping[str, Any], width: int | None) -> str:
    shown = Table(box=None, pad_edge=False, header_style="dim")
    shown.add_column("#", justify="right", style="dim")
    shown.add_column("work", overflow="fold", min_width=30)
    for name in RIGHT[1:]:
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("", no_wrap=True)
    for number, row in enumerate(results["rows"], 1):
        if row["status"] == "measured":
            shown.add_row(str(number), *_measured(row, results["quick"]))
        elif row["status"] in ("disagrees", "failed"):
            shown.add_row(str(number), _title(row), *[""] * 8, Text(row["status"].upper(), style="bold red"))
    return _text(shown, width)


def _measured(row: Mapping[str, Any], quick: bool) -> list[Any]:
    ours, peer, ratio = (row[name] for name in ("our_seconds", "peer_seconds", "ratio"))
    verdict = {None: Text(""), True: Text("holds", style="green"), False: Text("DOES NOT HOLD", style="bold red")}
    share = _percent(row["share_of_peak"])
    if row["recurrence_share_of_peak"] is not None:
        share += f" ({_percent(row['recurrence_share_of_peak'])})"
    return [
        _title(row),
        _figure(1e3 * ours["median"]),
        _figure(1e3 * peer["median"]),
        f"{_figure(ratio['median'])}x",
        f"[{_figure(ratio['low'])} to {_figure(ratio['high'])}]",
        _figure(row["gflops"]),
        share,
        _figure(row["gbytes"]),
        "" if quick else _target(row["target"]),
        verdict[row["holds"]],
    ]


def _title(row: Mapping[str, Any]) -> Text:
    parameters = ""
    if row["parameters"]:
        ours, peer = (f"{count / 1e6:.3g}" for count in row["parameters"])
        parameters = f"; {ours} and {peer} M parameters"
    return Text.assemble(row["work"], (f"\n{row['shape']}{parameters}; against {row['against']}", "dim"))


def _limits(results: Mapping[str, Any]) -> str:
    limits, machine = results["limits"], results["machine"]
    return (
        f"Limits, measured in this run with {machine['threads']} of {machine['cores']} cores: {limits['gflops']:.0f} "
        f"GFLOP/s in float32 ({limits['measured_by']}); a copy reads and writes {limits['gbytes']:.1f} GB/s of memory, "
        f"{limits['cache_gbytes']:.0f} GB/s of caches. Our ops ran on backend {machine['backend']}. "
        f"{machine['processor']}, torch {machine['torch']}; {results['seconds']:.0f} s."
    )


def _explained(results: Mapping[str, Any]) -> list[str]:
    lines = ["Times are medians; a ratio is the peer's time over ours, measured in turns, with its quartiles."]
    if any(row["recurrence_share_of_peak"] for row in results["rows"]):
        lines.append("Matrix memories are counted by chunks of 64 tokens; in brackets by the recurrence alone.")
    if results["quick"]:
        lines.append("This was a quick run: the work is smaller than what the targets speak of, so nothing is judged.")
    return lines


def _paths(results: Mapping[str, Any]) -> list[str]:
    """How each peer did it, and what else is to be known of a row."""
    lines = []
    for number, row in enumerate(results["rows"], 1):
        if row["status"] == "measured":
            versions = " and ".join(f"{package} {version}" for package, version in row["peer_packages"].items())
            path = ", ".join(part for part in (row["peer_path"], versions, row["note"]) if part)
            lines.append((f"{row['against']}: {path}", number))
    grouped: dict[str, list[int]] = {}
    for line, number in lines:
        grouped.setdefault(line, []).append(number)
    return [f"  {_numbers(numbers)}  {line}" for line, numbers in grouped.items()]


def _left_out(results: Mapping[str, Any]) -> list[str]:
    grouped: dict[tuple[str, str], list[int]] = {}
    for number, row in enumerate(results["rows"], 1):
        if row["status"] != "measured":
            what = f"{row['status']}: {row['reason']}"
            grouped.setdefault((what, row["work"] if row["status"] in ("disagrees", "failed") else ""), []).append(
                number
            )
    return [f"  {_numbers(numbers)}  {what}" for (what, _), numbers in grouped.items()]


def _warned(results: Mapping[str, Any]) -> list[str]:
    return [f"  #{number}  {line}" for number, row in enumerate(results["rows"], 1) for line in row["warnings"]]


def _verdict(results: Mapping[str, Any]) -> list[str]:
    judged = [row["holds"] for row in results["rows"] if row["holds"] is not None]
    return [f"{sum(judged)} of {len(judged)} targets hold."] if judged else []


def _target(target: Mapping[str, Any] | None) -> str:
    if target is None:
        return ""
    return f"{target['least']:g}x" if target["of"] == "ratio" else f"{target['least']:.0%} of peak"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(f"#{number}" for number in numbers)


def _figure(value: float | None) -> str:
    """Three digits, without powers of ten."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"


def _text(shown: Table, width: int | None) -> str:
    """The table as text; with a width never in colours, else as wide and colourful as the terminal."""
    terminal = Console(highlight=False)
    in_colour = width is None and terminal.is_terminal
    width = width or (terminal.width if terminal.is_terminal else WIDTH)
    console = Console(file=io.StringIO(), width=width, force_terminal=in_colour, highlight=False)
    console.print(shown)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())
