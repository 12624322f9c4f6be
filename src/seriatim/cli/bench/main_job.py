"""The benchmark, from start to end."""

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import torch

from seriatim.cli.bench import work_diagonal, work_layers, work_models, work_ops, work_scans
from seriatim.cli.bench.display import Display
from seriatim.cli.bench.folder import choose_folder
from seriatim.cli.bench.limits import Limits, best, measure_limits
from seriatim.cli.bench.machine import cores, describe
from seriatim.cli.bench.measure import Row, measure, missing
from seriatim.cli.bench.report import draw, list_rows, table
from seriatim.cli.bench.work import Work
from seriatim.core.errors import SeriatimError, check_one_of, check_positive, check_size

__all__ = ["main_job"]

KINDS = {"ops": (work_scans, work_diagonal, work_ops), "models": (work_layers, work_models)}
SECONDS, QUICK_SECONDS = 480.0, 60.0  # of a run
QUICK_REPEATS = 7


def main_job(options: Any) -> int:
    """Measures, prints, draws; returns the exit status."""
    works = _chosen(options)
    if options.list:
        print(list_rows(works))
        return 0
    check_size(repeats=options.repeats)
    budget = options.budget if options.budget is not None else QUICK_SECONDS if options.quick else SECONDS
    check_positive(budget=budget)
    _check_threads(options.threads)
    out = choose_folder(options.out, options.what, options.overwrite)
    out.mkdir(parents=True, exist_ok=True)
    repeats = min(options.repeats, QUICK_REPEATS) if options.quick else options.repeats
    with _threads(options.threads):
        results, stopped = _run(works, budget, repeats, options)
    (out / "bench.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    pictures = draw(results, out)
    (out / "table.txt").write_text(table(results, 150), encoding="utf-8")
    print(table(results))
    print(f"Kept in {', '.join(map(str, [out / 'bench.json', out / 'table.txt', *pictures]))}")
    if stopped:
        raise KeyboardInterrupt(f"stopped; what was measured until then is in {out}")
    return int(any(row["status"] in ("disagrees", "failed") for row in results["rows"]))


def _chosen(options: Any) -> list[Work]:
    check_one_of("WHAT", options.what, KINDS)
    found = [work for module in KINDS[options.what] for work in module.works(options.quick)]
    if options.only is None:
        return found
    try:
        pattern = re.compile(options.only, re.IGNORECASE)
    except re.error as error:
        raise SeriatimError(f"only is {options.only!r}, which is no regular expression: {error}") from error
    chosen = [work for work in found if pattern.search(str(work))]
    if not chosen:
        raise SeriatimError(f"only is {options.only!r}, which finds no row; --list prints them")
    return chosen


def _check_threads(count: int | None) -> None:
    if count is not None and not 1 <= count <= cores():
        raise SeriatimError(f"threads is {count}; it must be from 1 to {cores()}, the cores that this process may use")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Both sides use that many threads inside this block."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(works: Sequence[Work], budget: float, repeats: int, options: Any) -> tuple[dict[str, Any], bool]:
    """What bench.json holds, and whether Ctrl-C ended it."""
    began, stopped, rows = time.perf_counter(), False, list[Row]()
    limits = measure_limits()
    try:
        with Display(len(works)) as display:
            for index, work in enumerate(works):
                display.begin(work)
                rows.append(_row(work, works[index:], budget - (time.perf_counter() - began), repeats))
                display.done(rows[-1])
        limits = best(limits, measure_limits())
    except KeyboardInterrupt:
        stopped = True
    return _plain(rows, limits, time.perf_counter() - began, budget, options), stopped


def _row(work: Work, left: Sequence[Work], seconds: float, repeats: int) -> Row:
    """`seconds` are left for all rows of `left`, of which this is the first."""
    if seconds <= 0 and not missing(work):
        return Row(work, "skipped", "no time was left; give a larger --budget, or --only some rows")
    weights = sum(other.weight for other in left if not missing(other))
    return measure(work, seconds * work.weight / (weights or 1), repeats)


def _plain(rows: Sequence[Row], limits: Limits, seconds: float, budget: float, options: Any) -> dict[str, Any]:
    return {
        "bench": options.what,
        "quick": options.quick,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
        "budget": budget,
        "machine": describe(),
        "limits": {
            "gflops": limits.peak / 1e9,
            "measured_by": limits.peak_by,
            "gbytes": limits.bandwidth / 1e9,
            "cache_gbytes": limits.cache_bandwidth / 1e9,
        },
        "rows": [row.plain(limits, judged=not options.quick) for row in rows],
    }
