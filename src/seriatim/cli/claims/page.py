"""The page of results, made from what the claims left."""

import json
from pathlib import Path
from typing import Any

__all__ = ["page", "write_page"]

_HEAD = """# Papers

What papers claim, and what small versions of their experiments show here. `seriatim claims` runs them and makes this
page from `claims/results/`; `--quick` only shows that they run. Figures of papers are from their own, larger settings.
"""
_MARKS = {True: "holds", False: "**does not hold**", None: ""}


def page(results: Path) -> str:
    """The page, from the JSON files of a folder."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("[0-9][0-9][0-9].json"))]
    return "\n".join([_HEAD, *map(_section, found)])


def write_page(path: Path, folder: Path) -> None:
    """Writes the page of the claims in `folder`."""
    path.write_text(page(folder / "results"), encoding="utf-8")


def _section(result: dict[str, Any]) -> str:
    minutes, machine = max(1, round(result["seconds"] / 60)), result["machine"]
    where = f"{minutes} min on {machine['cores']} cores of {machine['processor']}"
    lines = [
        f"## {result['paper']}. {result['name'].replace('_', ' ')}",
        "",
        f"{result['claim']} (arXiv:{result['source']}; `claims/{result['paper']:03d}_{result['name']}.py`)",
        "",
        "| what | the paper | here | |",
        "|---|---|---|---|",
        *(_row(finding) for finding in result["findings"]),
        "",
        f"{result['date']}, seed {result['seed']}, {where}.",
        "",
    ]
    notes = result.get("notes")
    return "\n".join([*lines, notes, ""] if notes else lines)


def _row(finding: dict[str, Any]) -> str:
    cells = [finding["what"], finding["paper"], finding["ours"], _MARKS[finding["holds"]]]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
