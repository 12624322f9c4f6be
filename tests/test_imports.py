"""Imports go one way: the table of docs/architecture.md, held by reading the sources."""

import ast
from pathlib import Path

import pytest

import seriatim

ROOT = Path(seriatim.__file__).parent
LAYERS = [
    ["core"],
    ["kernels"],
    ["ops"],
    ["nn"],
    ["mixers"],
    ["backbones", "vision"],
    ["models"],
    ["objectives", "decoding", "analysis", "compress", "parallel", "train"],
    ["tasks", "data", "interop", "serve", "apps"],
    ["cli"],
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
ONLY = {  # narrower than their level
    "objectives": {"core", "nn"},
    "decoding": {"core"},
    "analysis": {"core"},
    "train": {"core", "nn"},
    "data": {"core"},
    "tasks": {"core"},
    "testing": {"core", "ops"},
}


def imported(path: Path) -> set[str]:
    """The folders of ours that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "seriatim":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("seriatim.")}
    return found


def allowed(folder: str) -> set[str]:
    below = {name for name, level in LEVEL.items() if level < LEVEL.get(folder, 99)}
    return ONLY.get(folder, below) | {folder}


def offences() -> list[str]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        folder = path.relative_to(ROOT).parts[0]
        if folder.endswith(".py"):
            continue
        found += [
            f"{path.relative_to(ROOT)} imports {name}"
            for name in sorted(imported(path) - allowed(folder))
            if (ROOT / name).is_dir()
        ]
    return found


def test_imports_go_one_way():
    assert offences() == []


def test_every_folder_has_a_place():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert folders <= LEVEL.keys() | ONLY.keys()


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("from seriatim.cli import main", "cli"),
        ("import seriatim.models.language_model", "models"),
        ("from seriatim import ops", "ops"),
    ],
)
def test_an_import_is_seen(tmp_path, line, name):
    path = tmp_path / "file.py"
    path.write_text(f"def f():\n    {line}\n")
    assert imported(path) == {name}
