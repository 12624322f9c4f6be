"""Prints what is in a run folder: the model, its parameters and state, the steps made, the checkpoints."""

import json
from pathlib import Path
from typing import Any

from seriatim.cli.memory import human
from seriatim.cli.parsing import Parser

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser) -> None:
    """The run, and the form of the answer."""
    parser.add_argument("run", metavar="RUN", type=str, help="a run folder that `seriatim train` wrote")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: Any) -> int:
    """Prints it."""
    from seriatim.cli.runs import read_config

    found = _collect(Path(options.run), read_config(options.run))
    print(json.dumps(found, indent=2) if options.json else _table(found))
    return 0


def _collect(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    from seriatim.compress.quantize import bytes_of
    from seriatim.core.build import build
    from seriatim.decoding.growth import growth
    from seriatim.train.run_folder import step_folders

    model = build(config["model"]).eval()
    state = growth(model)
    steps = step_folders(folder)
    return {
        "run": str(folder),
        "model": config["model"],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": bytes_of(model),
        "state": {"bytes": state.fixed, "bytes_per_token": state.per_token},
        **{part: config[part] for part in ("data", "tokenizer", "task", "lengths", "quantized") if part in config},
        "steps": config["train"]["steps"],
        "checkpoints": [step.name for step in steps],
        "last_log_line": _last_line(folder / "log.jsonl"),
    }


def _last_line(path: Path) -> dict[str, Any] | None:
    from seriatim.train.log import read_log

    records = read_log(path) if path.is_file() else []
    return records[-1] if records else None


def _table(found: dict[str, Any]) -> str:
    growing = found["state"]["bytes_per_token"]
    state = f"{human(found['state']['bytes'])} for a sequence, " + (
        f"and {human(growing)} more for every token" if growing else "constant, however long it is"
    )
    model = ", ".join(f"{name} {_plain(value)}" for name, value in found["model"].items() if name != "model")
    line, steps = found["last_log_line"], found["checkpoints"]
    newest = int(steps[-1].rpartition("-")[2]) if steps else 0
    rows = {
        "run": found["run"],
        "model": f"{found['model']['model']}: {model}",
        "parameters": f"{found['parameters']:,}",
        "bytes": f"{found['bytes']:,}",
        "state": state,
        **_source(found),
        **({"quantised from": found["quantized"]["from"]} if "quantized" in found else {}),
        "steps": f"{line['step'] if line else newest:,}" + (f" of {found['steps']:,}" if found["steps"] else ""),
        "checkpoints": ", ".join(steps) or "none yet",
        "last log line": "none yet" if line is None else ", ".join(f"{k} {_plain(v)}" for k, v in line.items()),
    }
    return "\n".join(f"{name:<15}{value}" for name, value in rows.items())


def _source(found: dict[str, Any]) -> dict[str, str]:
    """What the model was trained on."""
    if "task" in found:
        return {part: ", ".join(f"{k} {_plain(v)}" for k, v in found[part].items()) for part in ("task", "lengths")}
    tokenizer = found["tokenizer"]
    return {"data": found["data"], "tokenizer": _plain(tokenizer.get("path", tokenizer["tokenizer"]))}


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return value if isinstance(value, str) else json.dumps(value)
