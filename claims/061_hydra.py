"""Hydra multiplies by a quasiseparable matrix in time linear in the text, and at equal parameters fills in hidden
tokens better than two passes of a causal state space that are added.

Text is the Python source of the standard library, in bytes; 15 % of them are replaced by a mask, and told from both
sides. Hydra's layers stand against two Mamba-2 layers that are added, either with weights of their own and fewer inner
features, or with the same weights for both directions. All models have about as many parameters, 300 steps and three
seeds; Hydra is called better where its worst seed is better than the other's best. Times are of the processor.
"""

import statistics
import time
from functools import partial

import torch
from torch import Tensor, nn

import seriatim as sq
from seriatim.analysis.matrix import mixing_matrix, readings
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import optimise, parameters, seconds
from seriatim.core.build import Spec
from seriatim.data.corpus import Document, load_corpus
from seriatim.models.language_model import LanguageModel

SOURCE = "2407.09941"
DIM, STATE, MASK, HIDDEN, WINDOW = 64, 16, 256, 0.15, 128
HYDRA = {"mixer": "hydra", "state_size": STATE, "head_dim": 16}
TWO_PASSES = {"mixer": "mamba2", "state_size": STATE, "head_dim": 16}
MODELS: dict[str, Spec] = {
    "hydra": HYDRA,
    "two passes, added": {"mixer": "bidirectional", "inner": {**TWO_PASSES, "expand": 1, "state_size": 24}},
    "the same, weights shared": {
        "mixer": "bidirectional",
        "inner": {**TWO_PASSES, "state_size": 48},
        "tied": True,
    },
}


def text(documents: list[Document]) -> Tensor:
    """All bytes, one file after another."""
    return torch.frombuffer(bytearray(b"".join(document.data for document in documents)), dtype=torch.uint8)


def masked_loss(model: nn.Module, source: Tensor, batch: int, random: torch.Generator) -> Tensor:
    """Nats for each hidden byte, in windows of the text."""
    starts = torch.randint(len(source) - WINDOW, (batch, 1), generator=random)
    tokens = source[starts + torch.arange(WINDOW)].long()
    hidden = torch.rand(tokens.shape, generator=random) < HIDDEN
    logits, _ = model(tokens.masked_fill(hidden, MASK))
    return nn.functional.cross_entropy(logits[hidden], tokens[hidden])


def train(layer: Spec, parts: tuple[Tensor, Tensor], steps: int, seed: int) -> tuple[float, int, float]:
    """Nats for each hidden byte of files that were not trained on, parameters, and seconds of training."""
    torch.manual_seed(seed)
    model, random = LanguageModel(MASK + 1, dim=DIM, layers=[layer, layer]), torch.Generator().manual_seed(seed)
    start = time.process_time()
    optimise(model, lambda: masked_loss(model, parts[0], 16, random), steps=steps, rate=4e-3)
    spent, test = time.process_time() - start, torch.Generator().manual_seed(10_000)
    with torch.no_grad():
        losses = [masked_loss(model, parts[1], 64, test).item() for _ in range(8)]
    return statistics.mean(losses), parameters(model), spent


def matrix(length: int) -> list[Finding]:
    """Its scans against the matrix written out, and the ranks of that matrix's blocks."""
    mixer = sq.build("hydra", dim=32, state_size=4, head_dim=16).double()
    x = torch.randn(1, length, 32, dtype=torch.float64)
    M = mixing_matrix(mixer, x).detach()
    (reading,) = readings(mixer, x)
    difference = torch.einsum("bhts,bshp->bthp", M, reading.values) - reading.read
    error = (difference.abs().max() / reading.read.abs().max()).item()
    cut = range(1, length)
    blocks = [part for t in cut for part in (M[0, :, t:, :t], M[0, :, :t, t:])]
    rank = max(int(torch.linalg.matrix_rank(block, rtol=1e-10).max()) for block in blocks)
    return [
        Finding(f"both scans against the matrix written out, {length} tokens", "equal", f"{error:.1e}", error < 1e-12),
        Finding("rank of the matrix's blocks off the diagonal, 4 numbers a channel", "at most 4", f"{rank}", rank <= 4),
    ]


@torch.no_grad()
def growth(lengths: tuple[int, int], repeats: int) -> Finding:
    """What a token costs in long texts over what it costs in short ones."""
    ratios = {}
    for name in ("hydra", "attention"):
        mixer = sq.build(name, dim=DIM, **({"state_size": STATE} if name == "hydra" else {"heads": 4}))
        x = [torch.randn(1, length, DIM) for length in lengths]
        short, long = (seconds(partial(mixer, z), repeats) / z.size(1) for z in x)
        ratios[name] = long / short
    what = f"time of a token among {lengths[1]:,} over that among {lengths[0]:,}: hydra (attention)"
    figures = f"{ratios['hydra']:.1f} ({ratios['attention']:.1f})"
    return Finding(what, "1: linear", figures, None if repeats < 5 else ratios["hydra"] < 1.5)


def run(quick: bool, seed: int) -> list[Finding]:
    """The matrix in float64; times; masked modelling of source code."""
    torch.manual_seed(seed)
    findings = matrix(24 if quick else 96)
    findings.append(growth((64, 256) if quick else (1_024, 16_384), 1 if quick else 9))
    corpus = load_corpus("stdlib")
    parts = (text(corpus.train), text(corpus.validation))
    steps, seeds = (2, 1) if quick else (300, 3)
    found = {name: [train(layer, parts, steps, seed + turn) for turn in range(seeds)] for name, layer in MODELS.items()}
    losses = {name: [loss for loss, _, _ in runs] for name, runs in found.items()}
    for name, runs in found.items():
        each = ", ".join(f"{loss:.3f}" for loss in losses[name])
        spent = statistics.mean(spent for _, _, spent in runs) / steps
        figures = f"{each} ({runs[0][1]:,} parameters, {1000 * spent:.0f} ms a step)"
        holds = None if quick or name == "hydra" else max(losses["hydra"]) < min(losses[name])
        findings.append(Finding(f"{name}: nats for each hidden byte, each seed", "hydra less", figures, holds))
    return findings
