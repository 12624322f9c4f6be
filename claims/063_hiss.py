"""Models of sensors learn more from a hierarchy: a state space that reads short chunks afresh, under one that reads
what the first made of each, predicts with less error than a flat model of the same size.

A hidden drift moves a little from chunk to chunk (chunks of 10 readings). A reading is the drift, its sign turned or
not, under an oscillation and noise; whether the oscillation of the chunk is slow or fast tells about the sign. The
drift is to be told at every chunk's last reading; it has variance 1, so that always saying 0 gives an error of 1. The
task is made of two levels, as the paper's sensors are said to be. Flat models have two layers, the hierarchy one of
the same kind at each level. There is one seed, and errors count as less where they are so by 5 %.
"""

import math
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.backbones.hierarchical_ssm import HierarchicalSSM
from seriatim.backbones.stack import Stack
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import optimise, parameters
from seriatim.core.mixer import Mixer

SOURCE = "2402.10211"
CHUNK, CHUNKS = 10, 24
KEPT = 0.95  # of the drift, from chunk to chunk
NOISE = 0.7
CLEAR = 0.95  # of an error: what is less than that is told apart from chance
MIXERS = ("s4d", "mamba", "lstm")


def sample(batch: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Readings (B, chunks * k, 1) and drifts (B, chunks)."""
    shocks = torch.randn(batch, CHUNKS, generator=random)
    drift = [shocks[:, 0]]
    for shock in shocks[:, 1:].unbind(1):
        drift.append(KEPT * drift[-1] + math.sqrt(1 - KEPT**2) * shock)
    y = torch.stack(drift, 1)
    fast = torch.rand(batch, CHUNKS, 1, generator=random) < 0.5
    turns = torch.where(fast, 3.0, 1.0) * torch.arange(CHUNK) / CHUNK
    phase = torch.rand(batch, CHUNKS, 1, generator=random)
    noise = NOISE * torch.randn(batch, CHUNKS, CHUNK, generator=random)
    x = torch.where(fast, -1, 1) * y.unsqueeze(2) + 1.5 * torch.sin(2 * torch.pi * (turns + phase)) + noise
    return x.reshape(batch, -1, 1), y


class Regressor(nn.Module):
    """Readings to the drift at the end of each chunk."""

    def __init__(self, backbone: Mixer, dim: int):
        super().__init__()
        self.encoder, self.backbone, self.head = nn.Linear(1, dim), backbone, nn.Linear(dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.backbone(self.encoder(x))
        return self.head(hidden[:, CHUNK - 1 :: CHUNK]).squeeze(2)

    def error(self, batch: int, random: torch.Generator) -> Tensor:
        """The mean squared error in a batch."""
        x, y = sample(batch, random)
        return F.mse_loss(self(x), y)


def build(name: str, hierarchical: bool, dim: int) -> Mixer:
    """Two layers, flat or one above the other."""
    if hierarchical:
        return HierarchicalSSM(dim, low=[name], high=[name], chunk=CHUNK, feed_forward="gelu", expansion=2.0)
    return Stack(dim, [name, name], norm="layer", feed_forward="gelu", expansion=2.0)


def train(name: str, hierarchical: bool, *, steps: int, seed: int, dim: int = 32) -> tuple[float, int]:
    """Its error in sequences that were not trained on, and how many parameters it has."""
    torch.manual_seed(seed)
    model = Regressor(build(name, hierarchical, dim), dim)
    random = torch.Generator().manual_seed(seed)
    optimise(model, lambda: model.error(16, random), steps=steps, rate=5e-3, decay=0.01)
    with torch.no_grad():
        return model.error(512, torch.Generator().manual_seed(10_000)).item(), parameters(model)


def run(quick: bool, seed: int) -> list[Finding]:
    """Flat models and hierarchies of each kind of layer."""
    steps, seeds = (2, 1) if quick else (300, 1)
    means, findings = {}, []
    for name in MIXERS:
        flat, levels = (
            [train(name, hierarchical, steps=steps, seed=seed + turn) for turn in range(seeds)]
            for hierarchical in (False, True)
        )
        means[name] = [statistics.mean(error for error, _ in found) for found in (flat, levels)]
        told = [
            f"{', '.join(f'{error:.3f}' for error, _ in found)} ({found[0][1]:,} parameters)"
            for found in (flat, levels)
        ]
        what = f"{name}, flat, and in two levels: mean squared error of each seed"
        less = means[name][1] < CLEAR * means[name][0]
        judged = not quick and min(means[name]) < 0.8
        findings.append(Finding(what, "less in levels", "; ".join(told), less if judged else None))
    best_flat, best_levels = (min(means, key=lambda name: means[name][at]) for at in (0, 1))
    ratio = 1 - means[best_levels][1] / means[best_flat][0]
    what = f"best hierarchy ({best_levels}) against best flat model ({best_flat})"
    holds = None if quick or means[best_levels][1] > 0.8 else ratio > 1 - CLEAR
    findings.append(Finding(what, "at least 23 % less error", f"{100 * ratio:.0f} % less", holds))
    return findings
