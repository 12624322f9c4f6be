"""Measures how well a trained model predicts text it has not learnt from, in bits per byte."""

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from seriatim.cli.parsing import Parser

if TYPE_CHECKING:
    from seriatim.cli.runs import Run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser) -> None:
    """The run, the text, the form of the answer."""
    parser.add_argument("run", metavar="RUN", type=str, help="a run folder that `seriatim train` wrote")
    parser.add_argument("--data", metavar="PATH", type=str, help="another text; the run's own where nothing is said")
    parser.add_argument(
        "--split",
        metavar="{train,validation,test}",
        type=Literal["train", "validation", "test"],
        default="validation",
        help="which part of the text",
    )
    parser.add_argument("--tokens", metavar="N", type=int, default=0, help="stop after so many tokens; 0: all")
    parser.add_argument("--batch", metavar="N", type=int, default=16, help="sequences read side by side")
    parser.add_argument("--device", type=str, metavar="NAME", default="auto", help="auto is a GPU where there is one")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Any) -> int:
    """Prints the figures to standard output."""
    from seriatim.cli.runs import open_run

    found = _measure(options, open_run(options.run, options.device))
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(f"{name.replace('_', ' '):<15}{_plain(value)}" for name, value in found.items()))
    return 0


def _measure(options: Any, run: "Run") -> dict[str, Any]:
    from seriatim.cli.training import held_out_batches
    from seriatim.data.corpus import load_corpus
    from seriatim.train.evaluate import evaluate
    from seriatim.train.settings import TrainSettings

    settings = replace(TrainSettings(**run.config["train"]), batch=options.batch)
    data = run.config["data"] if options.data is None else options.data
    documents = getattr(load_corpus(data), options.split)
    batches = held_out_batches(run.model, documents, run.tokenizer, settings, options.tokens)
    figures = evaluate(run.model, batches)
    return {
        "run": options.run,
        "data": data,
        "split": options.split,
        **figures,
        "bytes": batches.bytes,
        "tokens": batches.tokens,
    }


def _plain(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
