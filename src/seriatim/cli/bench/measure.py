"""One row, measured: what came out, or in one line why nothing did."""

import time
import traceback
import warnings
from dataclasses import dataclass, field
from typing import Any

from seriatim.cli.bench.agreement import relative_error
from seriatim.cli.bench.clock import Timing, alternate
from seriatim.cli.bench.limits import Limits
from seriatim.cli.bench.peers import EXTRA, installed
from seriatim.cli.bench.work import NotAvailableError, Pair, Work

__all__ = ["Row", "measure", "missing"]

_PEERS = r"(transformers|huggingface_hub|mambapy|xlstm|mlstm_kernels|titans_pytorch|tensordict|assoc_scan|einx)(\.|$)"


@dataclass
class Row:
    """A row's result. status: "measured", "left out" (a peer is missing), "not available" (our side is), "skipped" (no
    time was left), "disagrees" (the two sides compute different things) or "failed"."""

    work: Work
    status: str
    reason: str = ""
    details: str = ""  # a traceback
    error: float | None = None  # the relative error between both sides
    timing: Timing | None = None
    pair: Pair | None = None
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)  # such as that kernels of ours could not be compiled

    def rates(self) -> dict[str, float | None]:
        """Operations and bytes a second of ours, and operations a second by the narrower count."""
        if self.timing is None or self.pair is None:
            return dict.fromkeys(("flops", "least_flops", "bytes"))
        seconds, pair = self.timing.ours.median, self.pair
        counted = {"flops": pair.flops, "least_flops": pair.least_flops, "bytes": pair.bytes}
        return {name: value / seconds if value else None for name, value in counted.items()}

    def holds(self, limits: Limits) -> bool | None:
        """Whether the target is met; None where there is none, or nothing was measured."""
        target, flops = self.work.target, self.rates()["flops"]
        if target is None or self.timing is None:
            return None
        if target.of == "peak":
            return flops is not None and flops / limits.peak >= target.least
        return self.timing.ratio.median >= target.least

    def plain(self, limits: Limits, judged: bool) -> dict[str, Any]:
        """As plain data; without `judged` no verdict."""
        pair, timing, rates = self.pair, self.timing, self.rates()
        target = self.work.target
        return {
            "work": self.work.name,
            "shape": self.work.shape,
            "against": self.work.peer.name,
            "peer_packages": self.versions,
            "peer_path": pair.path if pair else None,
            "note": self.work.note or None,
            "target": target._asdict() if target else None,
            "status": self.status,
            "reason": self.reason or None,
            "details": self.details or None,
            "warnings": self.warnings,
            "relative_error": self.error,
            "same_function": pair.compare is not None if pair else None,
            "parameters": pair.parameters if pair else None,
            "our_seconds": timing.ours._asdict() if timing else None,
            "peer_seconds": timing.peer._asdict() if timing else None,
            "ratio": timing.ratio._asdict() if timing else None,
            "pairs": timing.pairs if timing else 0,
            "gflops": _scaled(rates["flops"], 1e9),
            "recurrence_gflops": _scaled(rates["least_flops"], 1e9),
            "gbytes": _scaled(rates["bytes"], 1e9),
            "share_of_peak": _scaled(rates["flops"], limits.peak),
            "recurrence_share_of_peak": _scaled(rates["least_flops"], limits.peak),
            "share_of_bandwidth": _scaled(rates["bytes"], limits.bandwidth),
            "holds": self.holds(limits) if judged else None,
        }


def missing(work: Work) -> list[str]:
    """Packages that must be installed for the row and are not."""
    return [package for package in work.peer.packages if installed(package) is None]


def measure(work: Work, seconds: float, repeats: int) -> Row:
    """Builds both sides, compares what they compute, and times them in turns for about so many seconds."""
    if absent := missing(work):
        return Row(work, "left out", f"{' and '.join(absent)} not installed ({EXTRA})")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", module=_PEERS)
        row = _tried(work, time.perf_counter() + seconds, repeats)
    row.warnings = list(dict.fromkeys(_line(warning.message) for warning in found))
    return row


def _tried(work: Work, until: float, repeats: int) -> Row:
    versions = {package: installed(package) or "" for package in work.peer.packages}
    try:
        return _measured(work, until, repeats, versions)
    except NotAvailableError as error:
        return Row(work, "not available", str(error), versions=versions)
    except ImportError as error:
        packages = " and ".join(work.peer.packages) or work.peer.name
        return Row(work, "left out", f"{packages} cannot be imported: {_line(error)}", versions=versions)
    except Exception as error:  # a peer may raise anything
        return Row(work, "failed", _line(error), traceback.format_exc(), versions=versions)


def _measured(work: Work, until: float, repeats: int, versions: dict[str, str]) -> Row:
    pair, error = work.make(), None
    if pair.compare is not None:
        error = relative_error(*pair.compare())
        if error > pair.tolerance:
            reason = f"relative error {error:.2g}, more than {pair.tolerance:g}: not timed"
            return Row(work, "disagrees", reason, error=error, pair=pair, versions=versions)
    timing = alternate(pair.ours, pair.peer, until - time.perf_counter(), repeats)
    return Row(work, "measured", error=error, timing=timing, pair=pair, versions=versions)


def _line(error: BaseException | str) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {first}".rstrip(": ")


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
