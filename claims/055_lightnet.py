"""An additive recurrence needs one scan for data of any number of dimensions, and a model of it, causal or not,
computes the same by its scan as by its equation.
"""

import time

import torch

import seriatim as sq
from seriatim.cli.claims.claim import Finding
from seriatim.mixers.linear_attention.lightnet import reference

SOURCE = "2405.21022"
SHAPES = {"a sequence": [], "an image": [6], "a film": [3, 4]}


def error(causal: bool, shape: list[int]) -> float:
    """Of the scan against the equation, token by token, in float64."""
    mixer = sq.build("lightnet", dim=24, heads=2, causal=causal, shape=shape).double()
    x = torch.randn(2, 48, 24, dtype=torch.float64)
    with torch.no_grad():
        exact, (found, _) = reference(mixer, x), mixer(x)
    return ((found - exact).abs().max() / exact.abs().max()).item()


def seconds(mixer: torch.nn.Module, length: int) -> float:
    """Of a forward and backward pass, the least of three."""
    x, times = torch.randn(1, length, mixer.dim), []
    for _ in range(3):
        start = time.perf_counter()
        mixer(x)[0].sum().backward()
        times.append(time.perf_counter() - start)
    return min(times)


def run(quick: bool, seed: int) -> list[Finding]:
    """Equality for sequences, images and films; times of images of two sizes."""
    torch.manual_seed(seed)
    findings = []
    for name, shape in SHAPES.items():
        for causal in (True, False):
            found = error(causal, shape)
            what = f"{name}, {'causal' if causal else 'all at once'}: the scan against the equation"
            findings.append(Finding(what, "equal", f"{found:.1e}", found < 1e-10))
    side = 16 if quick else 64
    times = [
        seconds(sq.build("lightnet", dim=64, heads=4, causal=False, shape=[width]), width**2)
        for width in (side, 2 * side)
    ]
    ratio = times[1] / times[0] / 4
    what = f"time a pixel, images of {2 * side} x {2 * side} over {side} x {side}"
    findings.append(Finding(what, "constant", f"{ratio:.2f}", None if quick else ratio < 1.5))
    return findings
