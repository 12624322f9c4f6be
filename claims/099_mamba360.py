"""State space models, from S4 to Mamba, are an alternative to attention for long sequences: at equal training they tell
handwritten digits from their pixels, read one after another, at least as well, with a state that does not grow.

Digits have 8 x 8 pixels (scikit-learn's), so sequences are of 64 elements: a small protocol, one seed, far from the
accuracies that a full training gives, and no ranking of models that are close. Each mixer has its own defaults, two
layers of 32 features with feed-forward layers, and the same batches, steps and learning rate. `docs/state_space.md`
says what the mixers are.
"""

import time

import torch

import seriatim as sq
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, optimise, parameters
from seriatim.core.state import nbytes
from seriatim.data.task_batches import TaskBatches
from seriatim.models.classifier import Classifier
from seriatim.objectives.next_token import next_token
from seriatim.tasks.long_range.smnist import SequentialMNIST

SOURCE = "2404.16112"
DIM, LENGTH, GUESS = 32, 64, 1 / 10
INVARIANT = ("lssl", "s4", "dss", "s4d", "liquid_s4", "s5", "lru", "gss", "h3", "hyena", "mega", "lmu")
SELECTIVE = ("mamba", "mamba2", "rg_lru")
OTHERS = ("gru", "attention")


def train(name: str, steps: int, seed: int) -> tuple[float, int, float]:
    """Right answers for digits that were not trained on, parameters, seconds of training."""
    torch.manual_seed(seed)
    task = SequentialMNIST()
    model = Classifier(task.channels, task.vocab_size, dim=DIM, layers=[name, name])
    batches, start = TaskBatches(task, 32, LENGTH, LENGTH, seed), time.perf_counter()
    optimise(model, lambda: next_token(model, next(batches))[0], steps=steps, rate=5e-3, decay=0.01)
    spent = time.perf_counter() - start
    return answers(model, task, LENGTH, 512), parameters(model), spent


def state_bytes(name: str) -> int:
    """Of a layer that has read a digit."""
    return nbytes(sq.build(name, dim=DIM)(torch.randn(1, LENGTH, DIM))[1])


def run(quick: bool, seed: int) -> list[Finding]:
    """A row for each mixer; those whose systems treat all elements alike first."""
    steps, found, findings = 1 if quick else 250, {}, []
    for name in (*INVARIANT, *SELECTIVE, *OTHERS):
        found[name], size, spent = train(name, steps, seed)
        figures = f"{found[name]:.2f}; {size:,} parameters; {state_bytes(name):,} bytes; {spent:.0f} s"
        findings.append(Finding(f"{name}: right, size, state of a layer, training", "", figures, None))
    best = max((*INVARIANT, *SELECTIVE), key=lambda name: found[name])
    ahead = sum(found[name] >= found["attention"] for name in (*INVARIANT, *SELECTIVE))
    figures = f"{best} {found[best]:.2f}; {ahead} of {len(INVARIANT + SELECTIVE)} at least as well as attention"
    judged = not quick and found[best] > 2 * GUESS
    holds = found[best] >= found["attention"] if judged else None
    return [*findings, Finding("the best state space against attention", "state spaces", figures, holds)]
