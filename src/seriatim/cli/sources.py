"""What mixers, models and tasks are, read from their source files without importing them (and torch with them)."""

import ast
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import seriatim
from seriatim.core.build import names

__all__ = ["Parameter", "Part", "describe", "signature"]

_FOLDERS = {"mixer": ("mixers", "backbones"), "model": ("models",), "task": ("tasks",)}


class Parameter(NamedTuple):
    """An argument of a constructor."""

    name: str
    annotation: str
    required: bool
    default: Any
    help: str


class Part(NamedTuple):
    """A mixer, a model or a task."""

    name: str
    summary: str
    source: str
    parameters: tuple[Parameter, ...]
    bases: tuple[str, ...]  # of the class, as written


def describe(kind: str) -> list[Part]:
    """Every part of a kind ("mixer", "model" or "task"), by name."""
    root = Path(seriatim.__file__).parent
    paths = {path.stem: path for folder in _FOLDERS[kind] for path in sorted((root / folder).rglob("*.py"))}
    return [_read(name, paths[name]) for name in names(kind)]


def signature(part: Part) -> str:
    """The constructor's call with its defaults."""
    shown = [p.name if p.required else f"{p.name}={p.default!r}" for p in part.parameters]
    return f"{part.name}({', '.join(shown)})"


def _read(name: str, path: Path) -> Part:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    exported = next(
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and _target(n) == "__all__"
    )
    documentation = ast.get_docstring(classes[exported[0]]) or ""
    paragraphs = [" ".join(paragraph.split()) for paragraph in documentation.split("\n\n")]
    source = next((paragraph for paragraph in paragraphs if paragraph.startswith("Source:")), "")
    definition = classes[exported[0]]
    return Part(
        name,
        paragraphs[0],
        source.removeprefix("Source:").strip(),
        _parameters(definition, documentation),
        tuple(ast.unparse(base) for base in definition.bases),
    )


def _target(assignment: ast.Assign) -> str:
    return getattr(assignment.targets[0], "id", "")


def _parameters(definition: ast.ClassDef, documentation: str) -> tuple[Parameter, ...]:
    init = next((n for n in definition.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if init is None:
        return ()
    plain = init.args.args[1:]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(init.args.defaults)) + list(init.args.defaults)
    pairs = list(zip(plain + init.args.kwonlyargs, defaults + list(init.args.kw_defaults), strict=True))
    return tuple(_parameter(argument, default, documentation) for argument, default in pairs)


def _parameter(argument: ast.arg, default: ast.expr | None, documentation: str) -> Parameter:
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    value = None if default is None else _value(default)
    return Parameter(argument.arg, annotation, default is None, value, _help(argument.arg, documentation))


def _value(default: ast.expr) -> Any:
    try:
        return ast.literal_eval(default)
    except ValueError:
        return ast.unparse(default)


def _help(name: str, documentation: str) -> str:
    """What the docstring's Args say of this argument, alone or among others: `norm, dropout: ...`."""
    _, _, arguments = documentation.partition("Args:\n")
    found: list[str] = []
    for line in textwrap.dedent(arguments.split("\n\n")[0]).splitlines():
        named, colon, text = line.partition(": ")
        if found and line.startswith(" "):
            found.append(line.strip())
        elif found:
            break
        elif colon and name in [part.strip() for part in named.split(",")]:
            found.append(text)
    return " ".join(found).rstrip(".").replace("`", "")
