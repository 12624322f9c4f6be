"""A state space whose matrix is normal plus low rank is one map in three forms: a recurrence that writes in constant
time and memory, a convolution, and Cauchy products that find its kernel at near-linear cost; and it remembers over long
times.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

import seriatim as sq
from seriatim import ops
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, trained
from seriatim.core.state import nbytes
from seriatim.tasks.copying import Copying

SOURCE = "2111.00396"
DIM, GUESS = 64, 1 / 8


def views(length: int) -> list[Finding]:
    """The kernel by its two ways, and the convolution with it against the recurrence."""
    mixer, x = sq.build("s4", dim=8).double(), torch.randn(1, length, 8, dtype=torch.float64)
    with torch.no_grad():
        powers, kernel = mixer.kernel(length), mixer.kernel_by_cauchy(length)
        recurrence, convolution = mixer(x)[0], mixer.convolve(x, kernel)
    pairs = {
        f"kernel of {length:,} taps by Cauchy products against powers of the matrix": (kernel, powers),
        f"convolution with it against the recurrence, {length:,} tokens": (convolution, recurrence),
    }
    errors = {what: ((a - b).abs().max() / b.abs().max()).item() for what, (a, b) in pairs.items()}
    return [Finding(what, "equal", f"{error:.1e}", error < 1e-9) for what, error in errors.items()]


def plain(v: Tensor, z: Tensor, w: Tensor) -> Tensor:
    """The Cauchy product as one would write it: all fractions, then their sum."""
    v, w = torch.cat([v, v.conj()], 2), torch.cat([w, w.conj()], 1)
    return (v.unsqueeze(3) / (z - w.unsqueeze(2)).unsqueeze(1)).sum(2)


def speed(length: int, repeats: int) -> float:
    """Time of a plain Cauchy product over that of the op, forward and backward, measured in turns."""
    nodes = 2j * torch.tan(torch.arange(length // 2) * (torch.pi / length))
    v = torch.randn(16, 4, 32, dtype=torch.complex64, requires_grad=True)
    w = torch.complex(-0.01 - torch.rand(16, 32), 3 * torch.randn(16, 32)).requires_grad_()
    ratios = []
    for _ in range(repeats + 1):
        times = [seconds(lambda f=f: torch.view_as_real(f(v, nodes, w)).sum().backward()) for f in (plain, ops.cauchy)]
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@torch.no_grad()
def after(name: str, tokens: int) -> tuple[int, float]:
    """The bytes of a layer's state after so many tokens, and the microseconds of a step then."""
    mixer = sq.build(name, dim=DIM)
    state, x = mixer(torch.randn(1, tokens, DIM))[1], torch.randn(1, DIM)
    times = [seconds(lambda: mixer.step(x, state)) for _ in range(50)]
    return nbytes(state), 1e6 * statistics.median(times)


def run(quick: bool, seed: int) -> list[Finding]:
    """Views in float64; speed of the kernel; writing after short and long texts; copying after a delay."""
    torch.manual_seed(seed)
    findings = views(512 if quick else 16_384)
    length, repeats = (1024, 2) if quick else (16_384, 7)
    ratio = speed(length, repeats)
    what = f"a plain Cauchy product's time over ours, for a kernel of {length:,}, forward and backward"
    findings.append(Finding(what, "", f"{ratio:.0f}", None if quick else ratio >= 3))
    lengths = (64, 512) if quick else (1_024, 65_536)
    steps = {name: [after(name, tokens) for tokens in lengths] for name in ("s4", "attention")}
    for name, ((before, early), (later, late)) in steps.items():
        what = f"{name}: state and time of a step after {lengths[0]:,} and {lengths[1]:,} tokens, dim {DIM}"
        figures = f"{before:,} and {later:,} bytes; {early:.0f} and {late:.0f} us"
        grows = name == "attention"
        findings.append(Finding(what, "grows" if grows else "constant", figures, (later > before) == grows))
    ratio = steps["attention"][1][1] / steps["s4"][1][1]
    what = f"attention's time for a token over S4's after {lengths[1]:,}"
    findings.append(Finding(what, "60 for whole models (GPU)", f"{ratio:.1f}", None if quick else ratio > 1))
    task, delay = Copying(count=4, symbols=8), 20 if quick else 100
    training = {
        "steps": 2 if quick else 400,
        "lengths": (delay, delay),
        "rate": 1e-2,
        "decay": 0.0,
        "batch": 32,
        "seed": seed,
    }
    found = {name: answers(trained(task, [name, name], **training), task, delay) for name in ("s4", "gru")}
    holds = None if quick or max(found.values()) < 2 * GUESS else found["s4"] > max(0.9, found["gru"])
    what = f"copying up to 4 symbols after {delay} tokens: S4 (GRU)"
    findings.append(Finding(what, "long memory", f"{found['s4']:.2f} ({found['gru']:.2f}) right", holds))
    return findings
