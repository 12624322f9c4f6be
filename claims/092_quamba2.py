"""Selective state spaces keep predicting as well when their weights have 8 or 4 bits and what enters the recurrence has
8, if channels are sorted and clustered for their scales; they take a fraction of the memory, and write no slower.
"""

import itertools
import statistics
import time

import torch
from torch import nn

import seriatim as sq
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import bits_per_byte
from seriatim.compress.layers import Quantizer
from seriatim.compress.quantize import bytes_of, quantize
from seriatim.compress.quantized import Quantized
from seriatim.data.batches import PackedBatches
from seriatim.data.corpus import load_corpus
from seriatim.data.evaluation import EvaluationBatches
from seriatim.data.tokenizer import ByteTokenizer
from seriatim.objectives.next_token import next_token

SOURCE = "2503.22879"
SCHEMES = {"w8a8": 0.03, "w4a8": None, "w4a16": 0.08}  # how much larger the perplexity may be
SMALLER = 3.5  # times, at 4 bits


def trained(layer: str, steps: int, seed: int) -> sq.LanguageModel:
    """A language model of the standard library, byte by byte."""
    torch.manual_seed(seed)
    model = sq.LanguageModel(vocab_size=257, dim=192, layers=[layer] * 2, feed_forward="none")
    batches = iter(PackedBatches(load_corpus("stdlib").train, ByteTokenizer(), 8, 256, seed))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, max(2, steps), pct_start=0.1)
    for batch in itertools.islice(batches, steps):
        loss, _ = next_token(model, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    return model.eval()


def perplexity(model: nn.Module, tokens: int) -> float:
    """A byte, on text that was not learned from."""
    return 2 ** bits_per_byte(model, tokens)


@torch.no_grad()
def speeds(models: list[nn.Module], rounds: int) -> list[float]:
    """Tokens a second that each model writes, the medians of measurements in turns."""
    token, times = torch.tensor([40]), [[] for _ in models]
    for round_ in range(rounds + 1):
        for model, found in zip(models, times, strict=True):
            state = model.init_state(1)
            start = time.perf_counter()
            for _ in range(40):
                _, state = model.step(token, state)
            if round_:
                found.append((time.perf_counter() - start) / 40)
    return [1 / statistics.median(found) for found in times]


@torch.no_grad()
def clusters_help(model: Quantized, tokens: int) -> float:
    """The mean squared error of u as it enters the recurrence, by one scale a layer over by its clusters."""
    held_out = EvaluationBatches(load_corpus("stdlib").validation, ByteTokenizer(), 16, 256, tokens)
    errors = [0.0, 0.0]
    for block in model.network.stack.blocks:
        mixer = block.mixer

        def see(layer, given, rounded, inner=mixer.inner) -> None:
            u, one = given[0][..., :inner], Quantizer()
            one.scale.copy_(layer.scale[:inner].amax())
            for i, found in enumerate((one(u), rounded[..., :inner])):
                errors[i] += (found - u).square().mean().item()

        mixer.conv_out.register_forward_hook(see)
    for batch in held_out:
        model(batch.tokens, reset=batch.reset)
    return errors[0] / errors[1]


def writing(layer: str, quick: bool) -> list[Finding]:
    """Speed of larger models, that need not be trained for it: 7 million weights do not fit into near caches."""
    dim, layers = (64, 1) if quick else (512, 4)
    model = sq.LanguageModel(vocab_size=257, dim=dim, layers=[layer] * layers, feed_forward="none").eval()
    text = [(torch.randint(257, (4, 64)), None, None)]
    rates = speeds([model, *(quantize(model, name, text) for name in SCHEMES)], 3 if quick else 25)
    findings = []
    for name, rate in zip(SCHEMES, rates[1:], strict=True):
        holds = None if quick or name != "w8a8" else rate >= rates[0]
        shown = f"{rate / rates[0]:.2f} times {rates[0]:,.0f} tokens/s"
        what = f"{layer} {name}: speed of writing, {layers} layers of dim {dim}"
        findings.append(Finding(what, "up to 3 (W4A8, 8B)", shown, holds))
    return findings


def run(quick: bool, seed: int) -> list[Finding]:
    """Memory, perplexity and speed of each scheme beside float32, for both generations of Mamba."""
    steps, tokens = (3, 2000) if quick else (200, 32_768)
    calibration = EvaluationBatches(load_corpus("stdlib").train, ByteTokenizer(), 16, 256, tokens)
    findings = []
    for layer in ("mamba", "mamba2"):
        model = trained(layer, steps, seed)
        models = {name: quantize(model, name, calibration) for name in SCHEMES}
        before = perplexity(model, tokens)
        rates = speeds([model, *models.values()], 5 if quick else 60)
        for (name, found), rate in zip(models.items(), rates[1:], strict=True):
            ratio = bytes_of(model) / bytes_of(found)
            is_small = ratio >= SMALLER if name.startswith("w4") else None
            what = f"{layer} {name}: bytes of float32 over ours"
            findings.append(Finding(what, "4 (of float16)", f"{ratio:.2f}", is_small))
            worse, most = perplexity(found, tokens) / before - 1, SCHEMES[name]
            holds = None if quick or most is None else worse <= most
            shown = f"{worse:+.2%} of {before:.3f}"
            findings.append(Finding(f"{layer} {name}: perplexity", "1.6 points of accuracy (W4A8, 8B)", shown, holds))
            shown = f"{rate / rates[0]:.2f} times {rates[0]:,.0f} tokens/s"
            findings.append(Finding(f"{layer} {name}: speed of writing, 2 layers of dim 192", "", shown, None))
        findings += writing(layer, quick)
        if layer == "mamba2":
            gain = clusters_help(models["w8a8"], tokens)
            what = "mamba2: squared error of u with one scale over that with sorted clusters"
            findings.append(Finding(what, "above 1", f"{gain:.2f}", None if quick else gain > 1))
    return findings
