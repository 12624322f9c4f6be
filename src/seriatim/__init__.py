"""Sequence models on one contract: (state, segment) -> (outputs, state)."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seriatim import ops, testing
    from seriatim.core import state
    from seriatim.core.build import build, names
    from seriatim.models.language_model import LanguageModel
    from seriatim.train.checkpoint import load

__version__ = version("seriatim")
__all__ = ["LanguageModel", "build", "load", "names", "ops", "state", "testing"]

_HOMES = {
    "LanguageModel": "seriatim.models.language_model",
    "build": "seriatim.core.build",
    "load": "seriatim.train.checkpoint",
    "names": "seriatim.core.build",
    "ops": "seriatim",
    "state": "seriatim.core",
    "testing": "seriatim",
}


def __getattr__(name: str) -> Any:
    """Imports on first use, so that `seriatim --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'seriatim' has no attribute {name!r}")
    home = _HOMES[name]
    if name in ("ops", "state", "testing"):
        return import_module(f"{home}.{name}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
