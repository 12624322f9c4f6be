"""Several memories, of which a router picks few for each token, recall more than one memory under the same rule, at a
cost still linear in time.

Layers are the official ones, with a short convolution over each memory's own tokens; what has fewer parameters than the
mixture has a wider feed-forward layer instead. At 800 steps no model has learned all that its memory could hold, and
seeds differ by more than models do, so this is not shown here, nor its opposite. Also tried, at one length (32) only,
one seed: rate 1e-2, weight decay 0.1, 1,000 steps, GLA's rule: the mixture 0.39, one memory 0.18; rate 5e-3, no decay,
750 steps, gated delta rule: the mixture 0.18, one memory 0.46. Without the shared memory a mixture learns later: a key
and its value must come to the same memory before its convolution sees them side by side.
"""

import itertools
import time
from statistics import mean
from typing import Any

import torch

import seriatim as sq
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, by_level, parameters, spread, trained
from seriatim.models.language_model import LanguageModel
from seriatim.tasks.mqar import MQAR

SOURCE = "2502.13685"
LENGTH, PAIRS, DIM = 32, 8, 32
LEARNT = 0.2  # below it nothing was learned that could be compared
MANY = {"heads": 4, "memories": 4, "active": 2}
KINDS: dict[str, dict[str, Any]] = {
    "one memory": {"heads": 4},
    "one memory 4 times as large": {"heads": 1},
    "four, two active": {**MANY, "shared": False},
    "four, two active, and a shared one": {**MANY, "shared": True},
}
ONE, MIXTURE = next(iter(KINDS)), list(KINDS)[-1]
RULES = ("gated_delta", "gla")


def seconds(length: int) -> float:
    """Of the processor, a token, in a forward and backward pass of one layer, the second of two."""
    mixer, x = sq.build("mixture_of_memories", dim=64, heads=2, conv_size=4), torch.randn(1, length, 64)
    for _ in range(2):
        start = time.process_time()
        mixer(x)[0].sum().backward()
    return (time.process_time() - start) / length


def cost(quick: bool) -> Finding:
    """It rises where tensors outgrow the caches, and then no more."""
    lengths = (256, 512, 1024) if quick else (4096, 16384, 65536)
    times = [seconds(length) for length in lengths]
    ours = ", ".join(f"{each * 1e6:.0f}" for each in times) + " us"
    what = f"time a token, T = {', '.join(f'{length:,}' for length in lengths)}"
    return Finding(what, "constant", ours, None if quick else times[2] / times[1] < 1.5)


def spec(rule: str, kind: str) -> dict[str, Any]:
    """Of a layer."""
    one = {"memories": 1, "active": 1, "shared": False}
    return {"mixer": "mixture_of_memories", "rule": rule, "conv_size": 4, **one, **KINDS[kind]}


def expansion(task: MQAR, rule: str, kind: str) -> float:
    """Of the feed-forward layers: the least, from 4 on, with which a model has as many parameters as the mixture."""
    enough = parameters(LanguageModel(task.vocab_size, DIM, [spec(rule, MIXTURE)] * 2))
    sizes = (4 + 8 * count * 1.5 / DIM for count in itertools.count())
    return next(
        size
        for size in sizes
        if parameters(LanguageModel(task.vocab_size, DIM, [spec(rule, kind)] * 2, expansion=size)) >= enough
    )


def recall(rule: str, kind: str, quick: bool, seed: int) -> tuple[float, dict[int, float], int]:
    """The share of right answers, that by number of pairs, and the model's parameters."""
    task = MQAR(PAIRS, 32, noise=False)
    model = trained(
        task, [spec(rule, kind)] * 2, dim=DIM, steps=3 if quick else 800, lengths=(4, LENGTH), rate=5e-3, decay=0.0,
        seed=seed, expansion=expansion(task, rule, kind),
    )  # fmt: skip
    return answers(model, task, LENGTH, 512), by_level(model, task, LENGTH, 512), parameters(model)


def run(quick: bool, seed: int) -> list[Finding]:
    """Recall by pairs of one memory, of a larger one, of four and of four with a shared one; times at two lengths."""
    findings = []
    for rule in RULES:
        found: dict[str, list[float]] = {}
        for kind in KINDS:
            runs = [recall(rule, kind, quick, seed + repeat) for repeat in range(1 if quick else 3)]
            found[kind] = [right for right, _, _ in runs]
            pairs = ", ".join(f"{most}: {mean(levels[most] for _, levels, _ in runs):.2f}" for most in runs[0][1])
            ours = f"{spread(found[kind])}; by pairs {pairs} ({runs[0][2]:,} parameters)"
            holds = None
            if kind == MIXTURE and not quick and max(found[kind] + found[ONE]) > LEARNT:
                holds = min(found[kind]) > max(found[ONE])
            paper = "above one memory" if kind == MIXTURE else ""
            findings.append(Finding(f"{rule}, {kind}: recall, up to {PAIRS} pairs of 32 keys", paper, ours, holds))
    return [*findings, cost(quick)]
