"""The delta rule can be computed in chunks of matrix products, exactly and far faster than token by token, and recalls
associations that gated linear attention of the same state size loses.

Recall is that of layers which differ in nothing but the rule: as `mixture_of_memories` has one memory, GLA's and the
delta rule have the same projections, short convolution, output gate and state. As the mixers are, `deltanet` has a
convolution and `gla` none, and GLA answers 0.02 where DeltaNet answers 0.61 (64 keys, 600 steps): that difference was
the convolution's. Behind a window of 2 tokens instead of it, one seed: GLA 0.07, DeltaNet 0.16. With the convolution,
2,500 steps at one length, one seed: GLA 1.00, DeltaNet 0.91. Lengths are mixed here, so that learning begins soon.
"""

import statistics
import time

import torch
import torch.nn.functional as F

from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, parameters, spread, trained
from seriatim.ops import backend, delta_scan
from seriatim.ops.delta_scan import reference
from seriatim.tasks.mqar import MQAR

SOURCE = "2406.06484"
PAIRS, KEYS, LENGTH, DIM = 8, 32, 32, 32
LEARNT = 0.2  # below it nothing was learned that could be compared


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
    kinds = [(4, False)] if quick else [(4, False), (2, False), (4, True)]
    return findings + [compared(heads, noise, quick, seed) for heads, noise in kinds]


def compared(heads: int, noise: bool, quick: bool, seed: int) -> Finding:
    """Recall of layers that differ in nothing but their rule: the same short convolution, gate and size of state."""
    task, rates, sizes = MQAR(PAIRS, KEYS, noise=noise), {}, {}
    for rule in ("gla", "delta"):
        one = {"mixer": "mixture_of_memories", "memories": 1, "active": 1, "shared": False, "heads": heads}
        spec = {**one, "rule": rule, "conv_size": 4}
        models = [
            trained(
                task, [spec, spec], dim=DIM, steps=3 if quick else 800, lengths=(4, LENGTH), rate=5e-3, decay=0.0,
                seed=seed + repeat,
            )
            for repeat in range(1 if quick else 3)
        ]  # fmt: skip
        rates[rule], sizes[rule] = [answers(model, task, LENGTH, 512) for model in models], parameters(models[0])
    ours = ", ".join(f"{rule} {spread(rates[rule])}, {sizes[rule]:,} parameters" for rule in rates)
    between = "other tokens" if noise else "blanks"
    state = DIM * DIM // heads // 2
    what = f"recall, up to {PAIRS} pairs of {KEYS} keys among {between}, states of {state} numbers"
    holds = None
    if not quick and max(rates["delta"] + rates["gla"]) > LEARNT:
        holds = min(rates["delta"]) > max(rates["gla"])
    return Finding(what, "DeltaNet above GLA", ours, holds)
