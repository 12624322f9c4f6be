"""Runs claims one after another, a line each while it goes, and a table each where there was real work."""

import json
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from seriatim.cli.bench.machine import describe
from seriatim.cli.claims.claim import Claim, Finding, MissingDataError, find_claims
from seriatim.cli.claims.page import write_page

__all__ = ["main_job"]

MARKS = {True: Text("holds", style="green"), False: Text("DOES NOT HOLD", style="bold red"), None: Text("")}


def main_job(options: Any) -> int:
    """The exit status: 1 if a script failed, else 0."""
    folder = Path(options.folder)
    claims = find_claims(folder, options.numbers)
    if options.list:
        for claim in claims:
            print(f"{claim.number:03d} {claim.name}: {claim.says()}")
        return 0
    failed = 0
    for claim in claims:
        print(f"{claim.number:03d} {claim.name:<24} ", end="", flush=True)
        start = time.perf_counter()
        try:
            torch.manual_seed(options.seed)
            findings = list(claim.function()(options.quick, options.seed))
        except KeyboardInterrupt:
            print("interrupted")
            raise
        except MissingDataError as reason:
            print(f"passed over: {reason}")
            continue
        except Exception as error:  # a claim is anybody's script: whatever it raises is told, and the next ones run
            failed += 1
            print(f"FAILED: {type(error).__name__}: {error}")
            traceback.print_exc(file=sys.stderr)
            continue
        seconds = time.perf_counter() - start
        print(f"{_verdict(findings):<18} {seconds:6.0f} s", flush=True)
        if not options.quick:
            _show(findings)
            _keep(claim, findings, seconds, options.seed, folder / "results")
    if not options.quick and failed < len(claims) and Path(options.page).parent.is_dir():
        write_page(Path(options.page), folder)
    return 1 if failed else 0


def _verdict(findings: Sequence[Finding]) -> str:
    judged = [finding.holds for finding in findings if finding.holds is not None]
    if not judged:
        return f"runs, {len(findings)} figures"
    return f"{sum(judged)} of {len(judged)} hold"


def _show(findings: Sequence[Finding]) -> None:
    table = Table("what", "the paper", "here", "", box=None, pad_edge=False, header_style="dim")
    for finding in findings:
        table.add_row(finding.what, finding.paper, finding.ours, MARKS[finding.holds])
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _keep(claim: Claim, findings: Sequence[Finding], seconds: float, seed: int, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    machine = {name: describe()[name] for name in ("processor", "cores", "threads", "seriatim", "torch")}
    kept = {
        "paper": claim.number,
        "name": claim.name,
        "source": claim.load().SOURCE,
        "claim": claim.says(),
        "notes": claim.notes(),
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "seconds": round(seconds),
        "machine": machine,
        "findings": [vars(finding) for finding in findings],
    }
    text = json.dumps(kept, indent=2, ensure_ascii=False) + "\n"
    (folder / f"{claim.number:03d}.json").write_text(text, encoding="utf-8")
