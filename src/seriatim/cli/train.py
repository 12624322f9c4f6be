"""Trains a language model on a text. Options come from flags, from a YAML file (--config), or from both: flags win.

With --resume the run goes on where it was interrupted, with its own settings: `seriatim train --out RUN --resume`.
Ctrl-C saves and stops with status 130. A loss that is not finite stops the run with status 3; no checkpoint is lost.
"""

import os
import sys
from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING, Any

from seriatim.cli.options import add_model_options, add_training_options, build_model, stored_config
from seriatim.cli.parsing import Parser
from seriatim.cli.resuming import resumable
from seriatim.core.errors import SeriatimError
from seriatim.train.settings import TrainSettings

if TYPE_CHECKING:
    from seriatim.core.mixer import Mixer
    from seriatim.data.corpus import Corpus
    from seriatim.data.tokenizer import Tokenizer
    from seriatim.train.run_folder import RunFolder

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser) -> None:
    """The run, the model's constructor, the training settings. A resumed run's own are the defaults."""
    stored = stored_config(parser.given, ("model", "train"))
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
    add_model_options(parser, stored.get("model", {}))
    add_training_options(parser, stored.get("train", {}))


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
    model = build_model(options.model.as_dict(), vocab_size=tokenizer.vocab_size)
    folder = _run_folder(options, settings, model, tokenizer)
    corpus = load_corpus(options.data)
    if corpus.skipped:
        _note(f"{len(corpus.skipped):,} files of {corpus.name} are no text, or are empty, and were left out")
    with resumable(f"seriatim train --out {quote(options.out)} --resume"):
        return _fit(model, corpus, tokenizer, settings, folder)


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

    result = train_language_model(model, corpus, tokenizer, settings, folder)
    _note(f"{folder.path}: {result.progress.step:,} steps, {_figures(result.progress.validation)}")
    _note(f"write with it: seriatim generate {quote(str(folder.path))} --prompt 'def '")
    return 0


def _figures(figures: Mapping[str, float]) -> str:
    return ", ".join(f"validation {name.replace('_', ' ')} {value:.3f}" for name, value in figures.items())


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
