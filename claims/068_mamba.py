"""A state space whose step sizes and ports depend on the token selects what to keep: it copies symbols that stand
anywhere among blanks and finds what followed a token before, in texts far longer than those it was trained on, where
one that treats all tokens alike (S4D) does not. A fused scan makes up for the convolution that it gives up.

Two layers, each followed by a gated feed-forward layer; S4D is wider, because Mamba's blocks also hold gates and short
convolutions. A guess among 8 symbols is right in 0.12 of all cases. Training is short, 1,500 steps, where the paper
takes hundreds of thousands on 256 tokens and more: at the lengths of training both models find what followed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, parameters, seconds, trained
from seriatim.ops.selective_scan import reference, selective_scan
from seriatim.tasks.induction_heads import InductionHeads
from seriatim.tasks.selective_copying import SelectiveCopying

SOURCE = "2312.00752"
SYMBOLS, STEPS = 8, 1500
MODELS = {"mamba": 32, "s4d": 36}  # the wider has about as many parameters
TASKS = {
    "selective copying of up to 4 symbols": (SelectiveCopying(count=4, symbols=SYMBOLS), (16, 32), 32),
    "induction heads": (InductionHeads(symbols=SYMBOLS), (8, 24), 64),
}


def learns(what: str, steps: int, seed: int) -> list[Finding]:
    """Right answers of both models at the longest length of training, and at longer ones."""
    task, lengths, batch = TASKS[what]
    longest, found, sizes = lengths[1], {}, {}
    tested = [longest, 4 * longest] + ([] if steps < 10 else [32 * longest])
    for name, dim in MODELS.items():
        model = trained(task, [name] * 2, dim=dim, steps=steps, batch=batch, lengths=lengths, rate=1e-2, seed=seed)
        found[name] = [answers(model, task, length, 256) for length in tested]
        sizes[name] = parameters(model)
    (solved, *far), (other, *other_far) = found["mamba"], found["s4d"]
    judged = steps >= 10 and max(solved, other) > 2 / SYMBOLS
    figures = f"{solved:.2f} ({sizes['mamba']:,} parameters); s4d {other:.2f} ({sizes['s4d']:,})"
    holds = solved > max(0.9, other) if judged else None
    findings = [Finding(f"{what}, {longest} tokens as in training: right answers", "mamba solves it", figures, holds)]
    what = f"the same at {', '.join(f'{length:,}' for length in tested[1:])} tokens"
    mamba, s4d = (", ".join(f"{share:.2f}" for share in shares) for shares in (far, other_far))
    holds = far[0] > max(0.9, other_far[0]) if judged else None
    return [*findings, Finding(what, "mamba goes on", f"{mamba}; s4d {s4d}", holds)]


def speed(length: int, repeats: int) -> list[Finding]:
    """The op against the same recurrence as a loop of PyTorch's operations, there and back."""
    inputs = [torch.randn(1, length, 64), torch.rand(1, length, 64) / 10, -torch.rand(64, 16)]
    inputs += [torch.randn(1, length, 16), torch.randn(1, length, 16)]
    inputs = [z.requires_grad_() for z in inputs]

    def work(scan: Callable[..., tuple[Tensor, Tensor]]) -> None:
        scan(*inputs)[0].sum().backward()

    loop, fused = seconds(lambda: work(reference), repeats), seconds(lambda: work(selective_scan), repeats)
    with torch.no_grad():
        plain, ours = reference(*inputs)[0], selective_scan(*inputs)[0]
    error = ((plain - ours).abs().max() / plain.abs().max()).item()
    what = f"a loop's time over the fused scan's, {length:,} tokens, 64 channels of 16, forward and backward"
    holds = None if repeats < 3 else loop > 5 * fused
    return [
        Finding(what, "20 to 40 (GPU)", f"{loop / fused:.0f}", holds),
        Finding("the fused scan against the loop", "equal", f"{error:.1e}", error < 1e-4),
    ]


def run(quick: bool, seed: int) -> list[Finding]:
    """Speed of the scan; two tasks at the lengths of training and beyond."""
    torch.manual_seed(seed)
    findings = speed(64 if quick else 2_048, 1 if quick else 5)
    for what in TASKS:
        findings += learns(what, 2 if quick else STEPS, seed)
    return findings
