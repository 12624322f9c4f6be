"""S4, S5, Mamba and Jamba's hybrid are one line of models that read long texts at linear cost: each block learns in
parallel what it then writes token by token, without attention from a state that does not grow; and a layer of attention
among Mamba's brings recall to the hybrid.

Models have four layers of 32 features with feed-forward layers. The hybrid is Jamba's in small: its third layer is
attention, the others Mamba, and every second feed-forward layer is a mixture of four experts, of which a token uses
two. Attention alone stands beside them. Text is the Python source of the standard library, in bytes, read in windows of
256; recall is of the values of four keys among 32 tokens. Trainings are short, of 1,024 tokens a step, and from two
seeds: no ranking of models that are close. Times are processor time of one sequence. `docs/state_space.md` says how the
systems differ, and puts more of the family to one task.
"""

import time
from typing import Any

import torch
from torch import Tensor

from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, bits_per_byte, parameters, read_text, seconds, spread, trained
from seriatim.core.state import nbytes
from seriatim.models.language_model import LanguageModel
from seriatim.tasks.mqar import MQAR

SOURCE = "2503.18970"
DIM, PAIRS, KEYS, LENGTH = 32, 4, 16, 32
EXPERTS = {"feed_forward": "moe", "experts": 4}
HYBRID = {"layers": ["mamba", "mamba", "attention", "mamba"], "feed_forward": ["swiglu", EXPERTS] * 2}
MODELS: dict[str, dict[str, Any]] = {
    "s4": {"layers": ["s4"] * 4},
    "s5": {"layers": ["s5"] * 4},
    "mamba": {"layers": ["mamba"] * 4},
    "hybrid": HYBRID,
    "attention": {"layers": ["attention"] * 4},
}
GROWING = ("hybrid", "attention")


def model_of_text(name: str, steps: int, seed: int) -> LanguageModel:
    """Trained on bytes."""
    torch.manual_seed(seed)
    model = LanguageModel(257, dim=DIM, **MODELS[name])
    read_text(model, steps=steps, batch=8, window=128, rate=5e-3, seed=seed)
    return model


def recall(name: str, steps: int, seed: int) -> float:
    """The share of values that a model trained to recall gets right."""
    task = MQAR(pairs=PAIRS, keys=KEYS)
    training = {"steps": steps, "batch": 32, "lengths": (LENGTH, LENGTH), "rate": 5e-3, "decay": 0.0, "dim": DIM}
    return answers(trained(task, seed=seed, **training, **MODELS[name]), task, LENGTH)


@torch.no_grad()
def streaming_error(model: LanguageModel) -> float:
    """What is written token by token against the same read at once, in float64, over the largest number read."""
    model, tokens = model.double(), torch.randint(257, (2, 48))
    read, state = model(tokens)[0], model.init_state(2)
    written: list[Tensor] = []
    for token in tokens.unbind(1):
        y, state = model.step(token, state)
        written.append(y)
    model.float()
    return ((torch.stack(written, 1) - read).abs().max() / read.abs().max()).item()


@torch.no_grad()
def costs(model: LanguageModel, length: int) -> tuple[float, float, int]:
    """Microseconds a token of reading so many at once, and of writing one after them, and the bytes of state then."""
    tokens, one = torch.randint(257, (1, length)), torch.tensor([40])
    state = model(tokens)[1]
    reading = seconds(lambda: model(tokens), 3, time.process_time) / length
    writing = seconds(lambda: [model.step(one, state) for _ in range(20)], 5, time.process_time) / 20
    return 1e6 * reading, 1e6 * writing, nbytes(state)


def of_model(name: str, model: LanguageModel, lengths: tuple[int, int], quick: bool) -> list[Finding]:
    """How a model streams and what it costs by length."""
    error = streaming_error(model)
    findings = [Finding(f"{name}: written token by token against read at once", "equal", f"{error:.1e}", error < 1e-9)]
    (read, write, small), (read_far, write_far, large) = (costs(model, length) for length in lengths)
    what = f"{name}: reading, writing a token, and state after {lengths[0]:,} and {lengths[1]:,} tokens"
    shown = f"{read:.0f} and {read_far:.0f} us; {write:.0f} and {write_far:.0f} us; {small:,} and {large:,} bytes"
    grows = name in GROWING
    linear = (small < large) if grows else small == large and (quick or read_far < 1.5 * read)
    return [*findings, Finding(what, "grows" if grows else "as much for each token", shown, linear)]


def run(quick: bool, seed: int) -> list[Finding]:
    """Each block's text, streams and costs; then recall."""
    steps, learning, tokens, seeds = (2, 2, 2_000, (seed,)) if quick else (150, 400, 32_768, (seed, seed + 1))
    lengths, findings, right = (64, 256) if quick else (1_024, 8_192), list[Finding](), dict[str, list[float]]()
    for name in MODELS:
        models = [model_of_text(name, steps, each) for each in seeds]
        bits = spread([bits_per_byte(model, tokens, carry=False) for model in models])
        shown = f"{bits}; {parameters(models[0]):,} parameters"
        findings.append(Finding(f"{name}: bits a byte of text after {steps} steps, size", "", shown, None))
        findings += of_model(name, models[0], lengths, quick)
        right[name] = [recall(name, learning, each) for each in seeds]
        what = f"{name}: values recalled after {learning} steps"
        findings.append(Finding(what, "", f"{spread(right[name])} right", None))
    learnt = not quick and max(right["hybrid"]) > 2 / KEYS
    holds = min(right["hybrid"]) > max(right["mamba"]) if learnt else None
    shown = f"{spread(right['hybrid'])} and {spread(right['mamba'])} right"
    return [*findings, Finding("recall: hybrid and Mamba alone", "the hybrid ahead", shown, holds)]
