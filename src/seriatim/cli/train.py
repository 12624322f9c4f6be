"""Trains a language model on a text. Options come from flags, from a YAML file (--config), or from both: flags win.

With --resume the run goes on where it was interrupted, with its own settings: `seriatim train --out RUN --resume`.
Ctrl-C saves and stops with status 130. A loss that is not finite stops the run with status 3; no checkpoint is lost.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from seriatim.cli.errors import DIVERGED, CommandError
from seriatim.cli.parsing import Parser
from seriatim.cli.sources import Part, describe, signature
from seriatim.core.errors import SeriatimError
from seriatim.train.settings import TrainSettings

if TYPE_CHECKING:
    from seriatim.core.mixer import Mixer
    from seriatim.data.corpus import Corpus
    from seriatim.data.tokenizer import Tokenizer
    from seriatim.train.run_folder import RunFolder

__all__ = ["add_arguments", "run"]

_TYPES: dict[str, Any] = {"int": int, "float": float, "str": str, "bool": bool}
_METAVARS = {"int": "N", "float": "X", "str": "NAME", "bool": "BOOL", "bool | None": "BOOL"}


def add_arguments(parser: Parser) -> None:
    """The run, the model's constructor, the training settings. A resumed run's own are the defaults."""
    stored = _stored_config(parser.given)
    parser.add_argument("--config", action="config", help="a YAML file with any of these options")
    parser.add_argument("--out", type=str | None, metavar="FOLDER", help="the run folder; it must be new or empty")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument(
        "--data",
        type=str,
        metavar="PATH",
        default=stored.get("data", "stdlib"),
        help="a text file, a folder, or stdlib: Python's own source",
    )
    parser.add_argument(
        "--tokenizer",
        type=str | dict[str, Any],
        metavar="FILE",
        default=stored.get("tokenizer", "bytes"),
        help="bytes, or a tokenizer.json of Hugging Face",
    )
    model, described = parser.add_argument_group("model (seriatim list mixers names the layers)"), _model()
    parser.signatures["--model."] = signature(described)
    for option in described.parameters:
        default = stored.get("model", {}).get(option.name, option.default)
        model.add_argument(
            f"--model.{option.name}",
            type=_TYPES.get(option.annotation, Any),
            default=list(default) if isinstance(default, tuple) else default,
            metavar=_METAVARS.get(option.annotation, "YAML"),
            help=option.help,
        )
    train = parser.add_argument_group("training")
    hints = get_type_hints(TrainSettings)
    for setting in fields(TrainSettings):
        default = stored.get("train", {}).get(setting.name, setting.default)
        train.add_argument(
            f"--train.{setting.name}",
            type=hints[setting.name],
            default=default,
            metavar=_metavar(hints[setting.name]),
            help=setting.metadata["help"],
        )


def run(options: Any) -> int:
    """Trains. Everything is checked before the run folder is touched."""
    if not options.out:
        raise SeriatimError("--out is not given; it must name the run folder (seriatim train --help)")
    settings = TrainSettings(**options.train.as_dict())

    from seriatim.data.corpus import load_corpus
    from seriatim.data.tokenizer import load_tokenizer
    from seriatim.train.generators import seed

    tokenizer = load_tokenizer(options.tokenizer, options.out if options.resume else None)
    seed(settings.seed)
    model = _build(tokenizer.vocab_size, options.model.as_dict())
    folder = _run_folder(options, settings, model, tokenizer)
    corpus = load_corpus(options.data)
    if corpus.skipped:
        _note(f"{len(corpus.skipped):,} files of {corpus.name} are no text, or are empty, and were left out")
    try:
        return _fit(model, corpus, tokenizer, settings, folder)
    except KeyboardInterrupt as interrupted:
        how = (
            f"{interrupted}: seriatim train --out {quote(options.out)} --resume" if str(interrupted) else "interrupted"
        )
        raise KeyboardInterrupt(how) from None


def _build(vocab_size: int, options: dict[str, Any]) -> "Mixer":
    """The model; what its constructor cannot make anything of is a mistake in the options."""
    from seriatim.core.build import build

    try:
        return build("language_model", vocab_size=vocab_size, **options)
    except SeriatimError:
        raise
    except (TypeError, ValueError, RuntimeError, OverflowError, MemoryError) as error:
        raise SeriatimError(f"the model cannot be built: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """PyTorch adds its own stack to some messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _run_folder(options: Any, settings: TrainSettings, model: "Mixer", tokenizer: "Tokenizer") -> "RunFolder":
    """The folder, checked; nothing is written. Paths are kept whole, so that the run can be resumed from anywhere."""
    from seriatim.core.build import spec
    from seriatim.train.run_folder import RunFolder

    data = options.data if options.data == "stdlib" else os.path.abspath(options.data)
    # A resumed run's tokenizer is its own copy of the file; the run goes on saying where it came from.
    kind = tokenizer.spec() if isinstance(options.tokenizer, str) else dict(options.tokenizer)
    config = {"model": spec(model), "data": data, "tokenizer": kind, "train": settings.plain()}
    written_out = getattr(tokenizer, "json", None)
    return RunFolder(options.out, config, options.resume, {"tokenizer.json": written_out} if written_out else None)


def _fit(model: "Mixer", corpus: "Corpus", tokenizer: "Tokenizer", settings: TrainSettings, folder: "RunFolder") -> int:
    from seriatim.cli.training import train_language_model
    from seriatim.train.loop import TrainingError

    try:
        result = train_language_model(model, corpus, tokenizer, settings, folder)
    except TrainingError as error:
        raise CommandError(str(error), DIVERGED) from error
    _note(f"{folder.path}: {result.progress.step:,} steps, {_figures(result.progress.validation)}")
    _note(f"write with it: seriatim generate {quote(str(folder.path))} --prompt 'def '")
    return 0


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"validation {name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _model() -> Part:
    """The language model without vocab_size, which is the tokenizer's."""
    model = next(part for part in describe("model") if part.name == "language_model")
    return model._replace(parameters=tuple(p for p in model.parameters if p.name != "vocab_size"))


def _metavar(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return "{" + ",".join(get_args(hint)) + "}"
    return _METAVARS.get(getattr(hint, "__name__", str(hint)), "YAML")


def _stored_config(arguments: Sequence[str]) -> dict[str, Any]:
    """The configuration of the run that `--resume` goes on with; nothing where there is none to be read."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--out")
    peek.add_argument("--resume", action="store_true")
    try:
        known, others = peek.parse_known_args(list(arguments))
        if not known.resume or known.out is None:
            return {}
        config = json.loads((Path(known.out) / "config.json").read_text())
        parts = {"model", "train"}
        sound = isinstance(config, dict) and all(isinstance(config.get(part), dict) for part in parts)
        return config if sound else {}
    except FileNotFoundError as error:
        if others:
            return {}
        # A mistyped name alone must not train the default model on the default text.
        raise SeriatimError(f"out is {known.out!r}, where there is no run to resume; give a run's folder") from error
    except (argparse.ArgumentError, OSError, ValueError):
        return {}
