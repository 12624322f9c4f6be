"""Rounds the weights of a trained language model of Mamba or Mamba-2 layers to 8 or 4 bits, and measures what it lost.

The run that it writes is read by generate, evaluate and info as any other; it cannot be trained on.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from seriatim.cli.parsing import Parser
from seriatim.core.errors import SeriatimError

if TYPE_CHECKING:
    from seriatim.cli.runs import Run
    from seriatim.compress.quantized import Quantized
    from seriatim.data.evaluation import EvaluationBatches

__all__ = ["add_arguments", "run"]

_SIDE_BY_SIDE = 16  # rows that are read at a time


def add_arguments(parser: Parser) -> None:
    """The run, the scheme, where to, which text."""
    parser.add_argument("run", metavar="RUN", type=str, help="a run folder that `seriatim train` wrote")
    parser.add_argument(
        "--scheme",
        metavar="NAME",
        type=str,
        default="w4a16",
        help="bits of weights and activations: w8a8, w4a8 or w4a16",
    )
    parser.add_argument(
        "--out", type=str | None, metavar="FOLDER", help="the run folder to write; it must be new or empty"
    )
    parser.add_argument(
        "--data", metavar="PATH", type=str, help="another text to calibrate on; the run's own if not given"
    )
    parser.add_argument(
        "--tokens", metavar="N", type=int, default=32768, help="of the text's train part, to calibrate on"
    )
    parser.add_argument(
        "--evaluate-tokens", metavar="N", type=int, default=32768, help="of its validation part, to measure on; 0: all"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Any) -> int:
    """Writes the run folder; prints what it takes and how well it predicts, beside the original."""
    from seriatim.compress.schemes import scheme_of

    scheme_of(options.scheme)
    if not options.out:
        raise SeriatimError("--out is not given; it must name the run folder (seriatim quantize --help)")
    if options.tokens < 1:
        raise SeriatimError(f"--tokens is {options.tokens}; it must be at least 1")

    from seriatim.cli.runs import open_run
    from seriatim.compress.quantize import quantize
    from seriatim.models.language_model import LanguageModel
    from seriatim.train.run_folder import RunFolder

    RunFolder(options.out, {})  # one that cannot be written to is refused before any work
    run = open_run(options.run)
    if not isinstance(run.model, LanguageModel):
        raise SeriatimError(f"run {options.run!r} is of a {type(run.model).__name__}; it must be of a language_model")
    calibration, held_out = _texts(options, run)
    model = quantize(run.model, options.scheme, calibration)
    found = _measured(run, model, held_out)
    _write(options, run, model)
    print(json.dumps(found, indent=2) if options.json else _table(options.scheme, found))
    print(f"write with it: seriatim generate {quote(options.out)} --prompt 'def '", file=sys.stderr)
    return 0


def _texts(options: Any, run: "Run") -> "tuple[EvaluationBatches, EvaluationBatches]":
    """The text to calibrate on, and the one to measure on."""
    from seriatim.cli.training import held_out_batches
    from seriatim.data.corpus import load_corpus
    from seriatim.train.settings import TrainSettings

    corpus = load_corpus(run.config["data"] if options.data is None else options.data)
    settings = replace(TrainSettings(**run.config["train"]), batch=_SIDE_BY_SIDE)
    parts = ((corpus.train, options.tokens), (corpus.validation, options.evaluate_tokens))
    calibration, held_out = (held_out_batches(run.model, part, run.tokenizer, settings, n) for part, n in parts)
    return calibration, held_out


def _measured(run: "Run", model: "Quantized", held_out: "EvaluationBatches") -> dict[str, Any]:
    from seriatim.compress.quantize import bytes_of
    from seriatim.train.evaluate import evaluate

    found: dict[str, Any] = {}
    for name, each in (("original", run.model), ("quantized", model)):
        figures = evaluate(each, held_out)
        found[name] = {"bytes": bytes_of(each), **figures, "perplexity": 2 ** figures["bits_per_token"]}
    return found


def _write(options: Any, run: "Run", model: "Quantized") -> None:
    from seriatim.core.build import spec
    from seriatim.train.checkpoint import progress_of, save_model
    from seriatim.train.run_folder import RunFolder

    written_out = getattr(run.tokenizer, "json", None)
    quantized = {"from": str(Path(options.run).resolve()), "scheme": options.scheme, "tokens": options.tokens}
    config = {**run.config, "model": spec(model), "quantized": quantized}
    folder = RunFolder(options.out, config, False, {"tokenizer.json": written_out} if written_out else None)
    folder.prepare()
    try:
        progress = progress_of(options.run)
        save_model(folder.step_folder(progress.step), model, progress, folder.config)
    except OSError as error:
        raise SeriatimError(f"out is {options.out}, which cannot be written: {error}") from error


def _table(scheme: str, found: dict[str, Any]) -> str:
    before, after = found["original"], found["quantized"]
    rows = [
        ("", "original", scheme, ""),
        (
            "bytes",
            f"{before['bytes']:,}",
            f"{after['bytes']:,}",
            f"{before['bytes'] / after['bytes']:.2f} times smaller",
        ),
        *(
            (
                name.replace("_", " "),
                f"{before[name]:.4f}",
                f"{after[name]:.4f}",
                f"{after[name] / before[name] - 1:+.2%}",
            )
            for name in ("bits_per_byte", "perplexity")
        ),
    ]
    return "\n".join(f"{name:<15}{first:>14}{second:>14}   {last}".rstrip() for name, first, second, last in rows)
