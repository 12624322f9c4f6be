"""Names and specs: any mixer, model or task from plain data, and back.

A spec is a name, `"gla"`, or a dictionary of the name and the constructor's arguments, `{"mixer": "gla", "heads":
4}`. It survives JSON. A task is always given as a dictionary, `{"task": "parity"}`. A name is the stem of the file that
holds the class; a class of one's own is named `"package.module:Class"`.
"""

import inspect
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias

from seriatim.core.errors import SeriatimError, nearest

__all__ = ["Spec", "build", "check_options", "names", "resolve", "spec"]

Spec: TypeAlias = str | Mapping[str, Any]

_HOMES = {
    "mixer": ("seriatim.mixers", "seriatim.backbones"),
    "model": ("seriatim.models",),
    "task": ("seriatim.tasks",),
}


def names(kind: str = "mixer") -> list[str]:
    """The names that `build` knows. kind: "mixer" (backbones included), "model" or "task"."""
    if kind not in _HOMES:
        raise SeriatimError(f"kind is {kind!r}; it must be one of {', '.join(_HOMES)}")
    return sorted(_modules(kind))


def resolve(name: str, kind: str = "mixer") -> type:
    """The class of that name, imported now. Raises SeriatimError with the names there are, the nearest first."""
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            return getattr(import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise SeriatimError(f"{kind} {name!r} cannot be imported: {error}") from error
    modules = _modules(kind)
    if name not in modules:
        raise SeriatimError(f"no {kind} is named {name!r}; there are {', '.join(nearest(name, modules))}")
    module = import_module(modules[name])
    return getattr(module, module.__all__[0])


def build(name: Spec, **options: Any) -> Any:
    """Builds a mixer, a model or a task from a spec.

    `build("gla", dim=256, heads=4)` and `build({"mixer": "gla", "heads": 4}, dim=256)` are the same. An option given
    in both places keeps the spec's value. Raises SeriatimError for an unknown name (listing the names) and for an
    unknown or missing option (printing the signature), and for a switch that is neither True nor False.
    """
    kind, name, options = _parse(name, options)
    cls = resolve(name, kind)
    check_options(cls, name, options)
    return cls(**options)


def spec(module: Any) -> dict[str, Any]:
    """The plain data from which `build` makes a module of the same configuration (weights are not part of it)."""
    cls = type(module)
    kind = next((kind for kind in _HOMES if cls.__module__.startswith(_HOMES[kind])), None)
    kind = kind or ("model" if getattr(module, "reads_tokens", False) else "mixer")
    stem = cls.__module__.rpartition(".")[2]
    known = _modules(kind).get(stem) == cls.__module__ and resolve(stem, kind) is cls
    description: dict[str, Any] = {kind: stem if known else f"{cls.__module__}:{cls.__qualname__}"}
    for parameter in inspect.signature(cls).parameters:
        if not hasattr(module, parameter):
            raise SeriatimError(
                f"{cls.__name__} does not keep its argument {parameter!r}; its constructor must set self.{parameter}"
            )
        description[parameter] = getattr(module, parameter)
    return description


def check_options(cls: type, name: str, options: Mapping[str, Any]) -> None:
    """Raises SeriatimError unless `cls(**options)` has the options it takes, and switches are True or False."""
    signature = inspect.signature(cls)
    shown = f"{name}({', '.join(map(str, signature.parameters.values()))})"
    unknown = [option for option in options if option not in signature.parameters]
    if unknown:
        raise SeriatimError(f"{name} has no option {unknown[0]!r}; its signature is {shown}")
    missing = [p.name for p in signature.parameters.values() if p.default is p.empty and p.name not in options]
    if missing:
        raise SeriatimError(f"{name} needs the option {missing[0]!r}; its signature is {shown}")
    for option, value in options.items():
        if isinstance(signature.parameters[option].default, bool) and not isinstance(value, bool):
            raise SeriatimError(f"{option} is {value!r}; it must be True or False")


def _parse(name: Spec, options: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    if isinstance(name, str):
        return ("model" if name in _modules("model") else "mixer"), name, options
    if not isinstance(name, Mapping):
        raise SeriatimError(
            f"a spec is {name!r}; it must be a name or a dictionary with the key 'mixer', 'model' or 'task'"
        )
    kinds = [kind for kind in _HOMES if kind in name]
    if len(kinds) != 1:
        raise SeriatimError(f"a spec is {dict(name)!r}; it must have one key of {', '.join(_HOMES)}")
    rest = {key: value for key, value in name.items() if key != kinds[0]}
    return kinds[0], str(name[kinds[0]]), {**options, **rest}


@cache
def _modules(kind: str) -> dict[str, str]:
    """Stem to module name, read from the folders without importing what is in them."""
    found: dict[str, str] = {}
    pending = list(_HOMES[kind])
    while pending:
        package = pending.pop()
        location = find_spec(package)
        for module in pkgutil.iter_modules(location.submodule_search_locations if location else []):
            full = f"{package}.{module.name}"
            if module.ispkg:
                pending.append(full)
            elif module.name != "base" and not module.name.startswith("_") and not module.name.endswith("_base"):
                found[module.name] = full
    return found
