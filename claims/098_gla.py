"""Gated linear attention trains in chunks of matrix products that stay exact under any gates, and from some length on
faster than softmax attention.
"""

import statistics
import time
from collections.abc import Callable

import torch

import seriatim as sq
from seriatim.cli.claims.claim import Finding
from seriatim.ops import matrix_scan
from seriatim.ops.matrix_scan import reference

SOURCE = "2312.06635"


def error_at(strength: float) -> float:
    """Of the chunked form in float32, against the recurrence in float64, where gates are near exp(-strength)."""
    q, k, v = (torch.randn(2, 200, 2, 16) for _ in range(3))
    log_decay = -strength * torch.rand(2, 200, 2, 16)
    exact, _ = reference(*(z.double() for z in (q, k, v, log_decay)))
    found, _ = matrix_scan(q, k, v, log_decay)
    return ((found - exact).abs().max() / exact.abs().max()).item()


def training(name: str, time_steps: int, tokens: int) -> Callable[[], None]:
    """A forward and backward pass of one layer of dim 256."""
    mixer = sq.build(name, dim=256, heads=4)
    x = torch.randn(tokens // time_steps, time_steps, 256, requires_grad=True)

    def step() -> None:
        mixer(x)[0].sum().backward()

    return step


def speed(time_steps: int, tokens: int, repeats: int) -> float:
    """Attention's time over GLA's, measured in turns."""
    works = [training(name, time_steps, tokens) for name in ("gla", "attention")]
    ratios = []
    for repeat in range(repeats + 1):
        times = []
        for work in works:
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        if repeat:
            ratios.append(times[1] / times[0])
    return statistics.median(ratios)


def run(quick: bool, seed: int) -> list[Finding]:
    """Errors from weak to extreme gates; speed against attention from short to long sequences."""
    torch.manual_seed(seed)
    findings = []
    for strength in (0.01, 1.0, 50.0, 1e4):
        error = error_at(strength)
        what = f"chunks against the recurrence, log decays down to {-strength:g}"
        findings.append(Finding(what, "equal", f"{error:.1e}", error < 2e-6))
    lengths, tokens, repeats = ((256, 1024), 1024, 2) if quick else ((512, 2048, 8192), 8192, 9)
    for length in lengths:
        ratio = speed(length, tokens, repeats)
        holds = None if quick else ratio > 1 if length >= 2048 else None
        paper = "faster past 2k (H100)" if length >= 2048 else ""
        findings.append(Finding(f"attention's training time over GLA's, T = {length:,}", paper, f"{ratio:.2f}", holds))
    return findings
