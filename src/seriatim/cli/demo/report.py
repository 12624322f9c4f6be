"""The demo's page: one HTML file that stands alone, made from the measured figures."""

import base64
import html
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from seriatim.cli.memory import human

__all__ = ["comparison", "write_report"]


def write_report(results: Mapping[str, Any], pictures: Mapping[str, Path], path: Path) -> None:
    """Writes the page. results: what `demo.json` holds; pictures: "learning" and "memory", PNG files, if drawn."""
    ours, peer = results["models"]
    template = Template(files("seriatim.cli.demo").joinpath("report.html").read_text())
    page = template.substitute(
        headline=html.escape(comparison(results)),
        tiles=_tiles(results),
        learning=_picture(pictures.get("learning"), "Validation bits per byte against seconds of training"),
        memory=_picture(pictures.get("memory"), "Bytes of state against tokens read"),
        results=_results(results),
        memory_rows=_memory_rows(ours, peer),
        ours=html.escape(ours["name"]),
        peer=html.escape(peer["name"]),
        prompt=html.escape(results["sample"]["prompt"]),
        text=html.escape(results["sample"]["text"]),
        corpus=html.escape(_corpus(results)),
        machine=html.escape(", ".join(f"{key} {value}" for key, value in results["machine"].items())),
    )
    path.write_text(page, encoding="utf-8")


def comparison(results: Mapping[str, Any]) -> str:
    """One sentence on who is ahead, by the figures."""
    ours, peer = results["models"]
    bits, other = ours["bits_per_byte"], peer["bits_per_byte"]
    word = "fewer" if bits < other else "more"
    beaten = [name for name, level in results["compressors"].items() if bits < level]
    ahead = f"ahead of {' and '.join(beaten)}" if beaten else "not yet ahead of any of the compressors"
    return (
        f"After {ours['train_seconds']:.0f} seconds of training the {ours['name']} needs {bits:.2f} bits for a byte "
        f"it has never seen: {abs(bits / other - 1):.0%} {word} than a Transformer of equal size given "
        f"equal time, and {ahead}."
    )


def _tiles(results: Mapping[str, Any]) -> str:
    ours, peer = results["models"]
    state, cache = ours["memory"][-1], peer["memory"][-1]
    tiles = [
        (f"{ours['bits_per_byte']:.2f}", "bits per byte", f"Transformer {peer['bits_per_byte']:.2f}"),
        (
            f"{ours['train_tokens_per_second']:,.0f}",
            "bytes trained a second",
            f"Transformer {peer['train_tokens_per_second']:,.0f}",
        ),
        (
            f"{ours['write_tokens_per_second']:,.0f}",
            "bytes written a second",
            f"Transformer {peer['write_tokens_per_second']:,.0f}",
        ),
        (
            human(state["state_bytes"]),
            f"carried after {state['tokens']:,} bytes",
            f"Transformer {human(cache['state_bytes'])}",
        ),
    ]
    return "\n".join(
        f'<div class="tile"><b>{html.escape(figure)}</b><span>{html.escape(what)}</span>'
        f"<i>{html.escape(beside)}</i></div>"
        for figure, what, beside in tiles
    )


def _results(results: Mapping[str, Any]) -> str:
    rows = [
        (
            model["name"],
            model["bits_per_byte"],
            f"{model['parameters']:,} parameters, {model['train_tokens']:,} bytes read",
        )
        for model in results["models"]
    ]
    rows += [
        (name, level, "strongest setting, all validation bytes at once")
        for name, level in results["compressors"].items()
    ]
    cells = sorted(rows, key=lambda row: row[1])
    return "\n".join(
        f"<tr><td>{html.escape(name)}</td><td class=number>{bits:.3f}</td><td>{html.escape(note)}</td></tr>"
        for name, bits, note in cells
    )


def _memory_rows(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> str:
    return "\n".join(
        f"<tr><td class=number>{a['tokens']:,}</td><td class=number>{human(a['state_bytes'])}</td>"
        f"<td class=number>{a['tokens_per_second']:,.0f}</td><td class=number>{human(b['state_bytes'])}</td>"
        f"<td class=number>{b['tokens_per_second']:,.0f}</td></tr>"
        for a, b in zip(ours["memory"], peer["memory"], strict=True)
    )


def _corpus(results: Mapping[str, Any]) -> str:
    corpus: Mapping[str, Any] = results["corpus"]
    return (
        f"{corpus['files']:,} files of Python's standard library, {corpus['bytes'] / 1e6:.1f} MB; "
        f"{corpus['measured_bytes']:,} bytes of the {corpus['validation_files']:,} validation files, none of them "
        "trained on, are measured."
    )


def _picture(path: Path | None, caption: str) -> str:
    if path is None:
        return "<p>No picture: matplotlib is not installed (<code>pip install seriatim[viz]</code>).</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,{data}"></figure>'
