"""The delta rule can be computed in chunks of matrix products, exactly and far faster than token by token, and recalls
associations that gated linear attention of the same state size loses.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, parameters, trained
from seriatim.ops import backend, delta_scan
from seriatim.ops.delta_scan import reference
from seriatim.tasks.mqar import MQAR

SOURCE = "2406.06484"


def inputs(length: int) -> tuple[torch.Tensor, ...]:
    """Queries, keys of length 1, values and betas of two heads."""
    q, k, v = (torch.randn(2, length, 2, 32) for _ in range(3))
    return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, torch.rand(2, length, 2)


def seconds(length: int, name: str) -> float:
    """Of one pass by a backend, the median of three."""
    given, times = inputs(length), []
    for _ in range(3):
        start = time.perf_counter()
        with backend(name):
            delta_scan(*given)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run(quick: bool, seed: int) -> list[Finding]:
    """Equality, speed of the chunked form, and recall at equal size of state."""
    torch.manual_seed(seed)
    given = inputs(300)
    exact, _ = reference(*(z.double() for z in given))
    findings = []
    for name in ("torch", "cpu"):
        with backend(name):
            found, _ = delta_scan(*given)
        error = ((found - exact).abs().max() / exact.abs().max()).item()
        findings.append(Finding(f"chunks ({name}) against the recurrence", "equal", f"{error:.1e}", error < 2e-6))
    length = 512 if quick else 4096
    ratio = seconds(length, "reference") / seconds(length, "torch")
    what = f"time token by token over that in chunks, both in PyTorch, T = {length:,}"
    findings.append(Finding(what, "up to 30 on a GPU", f"{ratio:.0f}", None if quick else ratio > 2))
    task, rates = MQAR(pairs=16, keys=64), {}
    for mixer in ("gla", "deltanet"):
        spec = {"mixer": mixer, "heads": 2 if mixer == "gla" else 4}  # states of 1,024 numbers
        model = trained(task, [spec, spec], dim=64, steps=3 if quick else 600, lengths=(64, 64), seed=seed)
        rates[mixer] = (answers(model, task, 64), parameters(model))
    ours = ", ".join(f"{mixer} {right:.2f} ({count:,} parameters)" for mixer, (right, count) in rates.items())
    what = "recall, up to 16 pairs of 64 keys: GLA, and DeltaNet with its short convolution"
    holds = None if quick else rates["deltanet"][0] > rates["gla"][0]
    findings.append(Finding(what, "DeltaNet above GLA", ours, holds))
    return findings
