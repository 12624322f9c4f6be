"""Several memories, of which a router picks few for each token, recall more than one memory under the same rule, at a
cost still linear in time.
"""

import time

import torch

import seriatim as sq
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, parameters, trained
from seriatim.tasks.mqar import MQAR

SOURCE = "2502.13685"
LEARNT = 0.2  # below it nothing was learned that could be compared


def seconds(length: int) -> float:
    """Of a forward and backward pass of one layer, the second of two."""
    mixer, x = sq.build("mixture_of_memories", dim=64, heads=2), torch.randn(1, length, 64)
    for _ in range(2):
        start = time.perf_counter()
        mixer(x)[0].sum().backward()
    return time.perf_counter() - start


def run(quick: bool, seed: int) -> list[Finding]:
    """Recall of one memory, of four and of four with a shared one; times at two lengths."""
    task, found = MQAR(pairs=16, keys=64), {}
    for name, options in {
        "one memory": {"memories": 1, "active": 1, "shared": False},
        "four, two active": {"memories": 4, "active": 2, "shared": False},
        "four and a shared one": {"memories": 4, "active": 2, "shared": True},
    }.items():
        spec = {"mixer": "mixture_of_memories", "heads": 2, **options}
        model = trained(task, [spec, spec], dim=32, steps=3 if quick else 500, lengths=(64, 64), seed=seed)
        found[name] = (answers(model, task, 64), parameters(model))
    best = max(right for right, _ in list(found.values())[1:])
    ours = "; ".join(f"{name} {right:.2f} ({count:,} parameters)" for name, (right, count) in found.items())
    one = found["one memory"][0]
    holds = None if quick or max(best, one) < LEARNT else best > one
    findings = [Finding("recall, up to 16 pairs of 64 keys", "several above one", ours, holds)]
    short, long = (512, 1024) if quick else (4096, 16384)
    ratio = seconds(long) / seconds(short) / (long / short)
    what = f"time a token, T = {long:,} over T = {short:,}"
    findings.append(Finding(what, "constant", f"{ratio:.2f}", None if quick else ratio < 1.5))
    return findings
