"""Options of a model and of its training, and those of the run that is gone on with."""

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from seriatim.cli.parsing import Parser
from seriatim.cli.sources import Part, describe, signature
from seriatim.core.errors import SeriatimError
from seriatim.train.settings import TrainSettings

if TYPE_CHECKING:
    from seriatim.core.mixer import Mixer

__all__ = ["add_model_options", "add_part_options", "add_training_options", "build_model", "stored_config"]

OF_DATA = ("vocab_size", "channels", "classes")  # arguments of models that the data decide
_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}
_METAVARS = {"int": "N", "float": "X", "str": "NAME", "bool": "BOOL", "bool | None": "BOOL"}


def add_model_options(
    parser: Parser, defaults: Mapping[str, Any], leave_out: Collection[str] = (), model: str = "language_model"
) -> None:
    """The model's constructor as --model.*, but for what the data decide."""
    part = next(part for part in describe("model") if part.name == model)
    kept = tuple(p for p in part.parameters if p.name not in (*OF_DATA, *leave_out))
    group = parser.add_argument_group("model (seriatim list mixers names the layers)")
    add_part_options(parser, group, "model", part._replace(parameters=kept), defaults)


def add_part_options(parser: Parser, group: Any, prefix: str, part: Part, defaults: Mapping[str, Any]) -> None:
    """A constructor's parameters as --prefix.*."""
    parser.signatures[f"--{prefix}."] = signature(part)
    for option in part.parameters:
        default = defaults.get(option.name, option.default)
        group.add_argument(
            f"--{prefix}.{option.name}",
            type=_TYPES.get(option.annotation, Any),
            default=list(default) if isinstance(default, tuple) else default,
            metavar=_METAVARS.get(option.annotation, "YAML"),
            help=option.help,
        )


def add_training_options(parser: Parser, defaults: Mapping[str, Any], leave_out: Collection[str] = ()) -> None:
    """TrainSettings as --train.*."""
    group = parser.add_argument_group("training")
    hints = get_type_hints(TrainSettings)
    for setting in fields(TrainSettings):
        if setting.name not in leave_out:
            group.add_argument(
                f"--train.{setting.name}",
                type=hints[setting.name],
                default=defaults.get(setting.name, setting.default),
                metavar=_metavar(hints[setting.name]),
                help=setting.metadata["help"],
            )


def build_model(options: Mapping[str, Any], model: str = "language_model", **of_data: int) -> "Mixer":
    """The model; what its constructor cannot make anything of is a mistake in the options.

    of_data: the arguments that the data decide, such as vocab_size.
    """
    from seriatim.core.build import build

    try:
        return build(model, **of_data, **options)
    except SeriatimError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise SeriatimError(f"the model cannot be built: {_first_line(error)}") from error


def stored_config(arguments: Sequence[str], parts: Collection[str]) -> dict[str, Any]:
    """The configuration of the run that `--resume` goes on with; nothing where there is none to be read.

    parts: the keys that must hold options for it to be such a run.
    """
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--out")
    peek.add_argument("--resume", action="store_true")
    try:
        known, others = peek.parse_known_args(list(arguments))
        if not known.resume or known.out is None:
            return {}
        config = json.loads((Path(known.out) / "config.json").read_text())
        sound = isinstance(config, dict) and all(isinstance(config.get(part), dict) for part in parts)
        return config if sound else {}
    except FileNotFoundError as error:
        if others:
            return {}
        # A mistyped name alone must not train the default model on the default text.
        raise SeriatimError(f"out is {known.out!r}, where there is no run to resume; give a run's folder") from error
    except (argparse.ArgumentError, OSError, ValueError):
        return {}


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    return _METAVARS.get(getattr(hint, "__name__", str(hint)), "YAML")


def _first_line(error: Exception) -> str:
    """PyTorch adds its own stack to some messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
