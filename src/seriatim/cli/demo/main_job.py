"""The demo, from start to end."""

import json
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from seriatim.cli.demo.chart import draw_learning, draw_memory
from seriatim.cli.demo.compressors import compressed_bits
from seriatim.cli.demo.measure import read_growing, write
from seriatim.cli.demo.report import comparison, write_report
from seriatim.cli.processor import processor
from seriatim.cli.training import train_language_model
from seriatim.core.build import build, spec
from seriatim.core.errors import SeriatimError, check_positive
from seriatim.core.mixer import Mixer
from seriatim.data.corpus import Corpus, load_corpus
from seriatim.data.evaluation import EvaluationBatches
from seriatim.data.tokenizer import ByteTokenizer
from seriatim.decoding.sampler import Sampler
from seriatim.train import generators
from seriatim.train.run_folder import RunFolder
from seriatim.train.settings import TrainSettings

__all__ = ["main_job"]

DIM = 128
BATCH, WINDOW, LEARNING_RATE = 8, 256, 4e-3
OURS = {"layers": ["lstm", "gla"], "expansion": 2.0}
PEER = {"layers": ["attention", "attention"], "expansion": 3.0}  # so that both have the same number of parameters
MEASURED = 131_072  # bytes of the validation files that everything is measured on
CURVE_STEPS = 150  # steps of training between two measurements
LENGTHS = (1_024, 4_096, 16_384)


def main_job(options: Any) -> int:
    """Trains, measures, writes and reports; returns the exit status."""
    check_positive(minutes=options.minutes, tokens=options.tokens)
    out, console = Path(options.out), Console(highlight=False)
    _clear(out, options.overwrite)
    tokenizer, corpus = ByteTokenizer(), load_corpus("stdlib")
    measured = EvaluationBatches(corpus.validation, tokenizer, batch=BATCH, window=WINDOW, tokens=MEASURED)
    results: dict[str, Any] = {
        "machine": _machine(),
        "corpus": _described(corpus, measured),
        "compressors": compressed_bits(measured.text),
        "models": [],
    }
    console.print(
        f"Text: {results['corpus']['files']:,} files of Python's standard library, "
        f"{results['corpus']['bytes'] / 1e6:.0f} MB. Measured on {measured.bytes:,} bytes of files kept apart.\n"
    )
    ours = _train("LSTM + GLA model", OURS, out, corpus, tokenizer, options, console, results)
    peer = _train("Transformer", PEER, out / "transformer", corpus, tokenizer, options, console, results)
    _print_bits(results, console)
    _write(ours, peer, results, tokenizer, options, console)
    _read(ours, peer, results, measured, tokenizer, console)
    pictures = _leave(results, out)
    console.print(f"\n{comparison(results)}")
    console.print(f"Look at {', '.join(map(str, [out / 'report.html', *pictures]))}", soft_wrap=True)
    console.print(f"Write more: seriatim generate {out} --prompt 'class '", soft_wrap=True)
    return 0


def _train(
    name: str,
    shape: Mapping[str, Any],
    folder: Path,
    corpus: Corpus,
    tokenizer: ByteTokenizer,
    options: Any,
    console: Console,
    results: dict[str, Any],
) -> Mixer:
    """Trains one model for its minutes, measures it, and adds its figures to the results."""
    settings = TrainSettings(
        steps=0, minutes=options.minutes, batch=BATCH, window=WINDOW, learning_rate=LEARNING_RATE,
        evaluate_every=CURVE_STEPS, evaluate_tokens=MEASURED, checkpoint_every=10**9, seed=options.seed,
    )  # fmt: skip
    generators.seed(options.seed)
    model: Mixer = build("language_model", vocab_size=tokenizer.vocab_size, dim=DIM, **shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    console.print(f"[bold]{name}[/]: {parameters:,} parameters, {options.minutes:g} minutes of training")
    config = {
        "demo": True,
        "model": spec(model),
        "data": "stdlib",
        "tokenizer": tokenizer.spec(),
        "train": settings.plain(),
    }
    run_folder = RunFolder(folder, config)
    progress = train_language_model(model, corpus, tokenizer, settings, run_folder).progress
    results["models"].append(
        {
            "name": name,
            "layers": shape["layers"],
            "parameters": parameters,
            "train_seconds": progress.seconds,
            "train_steps": progress.step,
            "train_tokens": progress.tokens,
            "train_tokens_per_second": progress.tokens / progress.seconds,
            "curve": _curve(run_folder.log_path),
            **progress.validation,
        }
    )
    return model.eval()


def _curve(log: Path) -> list[tuple[float, float]]:
    """(seconds of training, validation bits per byte), from the log."""
    records = map(json.loads, log.read_text().splitlines())
    return [(r["seconds"], r["validation_bits_per_byte"]) for r in records if "validation_bits_per_byte" in r]


def _print_bits(results: Mapping[str, Any], console: Console) -> None:
    rows = [(m["name"], m["bits_per_byte"]) for m in results["models"]] + list(results["compressors"].items())
    table = Table("on the same validation bytes", "bits per byte", box=None, pad_edge=False, header_style="dim")
    table.columns[1].justify = "right"
    for name, bits in sorted(rows, key=lambda row: row[1]):
        table.add_row(name, f"{bits:.3f}")
    console.print()
    console.print(table)


def _write(
    ours: Mixer, peer: Mixer, results: dict[str, Any], tokenizer: ByteTokenizer, options: Any, console: Console
) -> None:
    """Streams what our model writes to the terminal, and times both."""
    prompt, sampler = tokenizer.encode(options.prompt).tolist(), Sampler(temperature=0.7, top_p=0.95)
    console.print(f"\n[bold]Writing[/] after {options.prompt!r}:\n")
    console.out(options.prompt, end="", style="cyan")
    decoder, pieces = tokenizer.decoder(), list[str]()

    def show(token: int) -> None:
        pieces.append(decoder.feed(token) if token != tokenizer.boundary else "\n")
        console.out(pieces[-1], end="")

    def write_with(model: Mixer, show: Any) -> float:
        return write(model, prompt, options.tokens, sampler, tokenizer.boundary, options.seed, show)

    speeds = [write_with(ours, show), write_with(peer, lambda token: None)]
    for figures, speed in zip(results["models"], speeds, strict=True):
        figures["write_tokens_per_second"] = speed
    results["sample"] = {"prompt": options.prompt, "text": "".join(pieces)}
    console.print(f"\n\n[dim]{speeds[0]:,.0f} bytes a second; the Transformer {speeds[1]:,.0f}[/]")


def _read(
    ours: Mixer,
    peer: Mixer,
    results: dict[str, Any],
    measured: EvaluationBatches,
    tokenizer: ByteTokenizer,
    console: Console,
) -> None:
    """What each model carries after texts of growing length."""
    tokens = torch.from_numpy(tokenizer.encode(measured.text[: LENGTHS[-1]]))
    for model, figures in zip((ours, peer), results["models"], strict=True):
        figures["memory"] = read_growing(model, tokens, LENGTHS)
    table = Table("bytes read", box=None, pad_edge=False, header_style="dim")
    for figures in results["models"]:
        table.add_column(f"{figures['name']} carries", justify="right")
        table.add_column("reads a second", justify="right")
    for rows in zip(*(figures["memory"] for figures in results["models"]), strict=True):
        cells = [cell for row in rows for cell in (f"{row['state_bytes']:,} bytes", f"{row['tokens_per_second']:,.0f}")]
        table.add_row(f"{rows[0]['tokens']:,}", *cells)
    console.print("\n[bold]Memory[/]")
    console.print(table)


def _leave(results: Mapping[str, Any], out: Path) -> list[Path]:
    """Writes the figures, the pictures and the page; returns the pictures."""
    (out / "demo.json").write_text(json.dumps(results, indent=1) + "\n")
    pictures = {"learning": out / "learning.png", "memory": out / "memory.png"}
    try:
        draw_learning(results["models"], results["compressors"], pictures["learning"])
        draw_memory(results["models"], pictures["memory"])
    except ImportError:
        print("seriatim: no pictures: matplotlib is not installed (pip install seriatim[viz])", file=sys.stderr)
        pictures = {}
    write_report(results, pictures, out / "report.html")
    return list(pictures.values())


def _clear(out: Path, overwrite: bool) -> None:
    """Removes an earlier demo where that was asked for, and nothing else: its config must say that it is one."""
    if not overwrite or not out.is_dir() or not any(out.iterdir()):
        return
    try:
        is_demo = json.loads((out / "config.json").read_text()).get("demo", False)
    except (OSError, ValueError, AttributeError):
        is_demo = False
    if not is_demo:
        raise SeriatimError(f"out is {out}, which does not hold a demo; choose another folder")
    shutil.rmtree(out)


def _described(corpus: Corpus, measured: EvaluationBatches) -> dict[str, int]:
    parts = (corpus.train, corpus.validation, corpus.test)
    return {
        "files": sum(map(len, parts)),
        "bytes": sum(len(document.data) for part in parts for document in part),
        "validation_files": len(corpus.validation),
        "measured_bytes": measured.bytes,
    }


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "Python": platform.python_version(),
        "torch": torch.__version__,
    }
