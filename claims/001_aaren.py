"""Attention with a learned query is a recurrent network: a scan computes it for every prefix, and its state, unlike
attention's cache, does not grow with what was read.
"""

import time

import torch
from torch import Tensor, nn

import seriatim as sq
from seriatim.cli.claims.claim import Finding
from seriatim.core.state import nbytes

SOURCE = "2405.13956"
DIM, HEADS = 64, 4


def attention_over_prefixes(mixer: nn.Module, x: Tensor) -> Tensor:
    """PyTorch's softmax attention of the layer's query to every prefix, one prefix at a time."""

    def heads(z: Tensor) -> Tensor:
        return z.unflatten(-1, (HEADS, -1)).transpose(-3, -2)

    k, v = map(heads, mixer.key_value(x).chunk(2, -1))
    q = heads(mixer.query(mixer.token).expand(x.size(0), 1, -1))
    found = [
        nn.functional.scaled_dot_product_attention(q, k[:, :, : t + 1], v[:, :, : t + 1]) for t in range(x.size(1))
    ]
    return mixer.out(torch.cat(found, 2).transpose(1, 2).flatten(-2))


def after(name: str, tokens: int) -> tuple[int, float]:
    """The bytes of the state after so many tokens, and the microseconds of a step then."""
    mixer = sq.build(name, dim=DIM, heads=HEADS)
    state = mixer(torch.randn(1, tokens, DIM))[1]
    times = []
    for _ in range(30):
        start = time.perf_counter()
        mixer.step(torch.randn(1, DIM), state)
        times.append(time.perf_counter() - start)
    return nbytes(state), 1e6 * sorted(times)[len(times) // 2]


def run(quick: bool, seed: int) -> list[Finding]:
    """Equal outputs in all three forms; bytes and step times after short and long texts."""
    torch.manual_seed(seed)
    length, short, long = (64, 64, 512) if quick else (512, 256, 65_536)
    mixer, x = sq.build("aaren", dim=DIM, heads=HEADS).double(), torch.randn(2, length, DIM, dtype=torch.float64)
    with torch.no_grad():
        exact = attention_over_prefixes(mixer, x)
        whole, _ = mixer(x)
        state, pieces, steps = mixer.init_state(2), [], []
        for piece in x.split(37, 1):
            y, state = mixer(piece, state)
            pieces.append(y)
        state = mixer.init_state(2)
        for t in range(length):
            y, state = mixer.step(x[:, t], state)
            steps.append(y)
        forms = {"the scan": whole, "pieces of 37": torch.cat(pieces, 1), "single steps": torch.stack(steps, 1)}
        sizes = {name: (after(name, short), after(name, long)) for name in ("aaren", "attention")}
    findings = []
    for form, found in forms.items():
        error = ((found - exact).abs().max() / exact.abs().max()).item()
        findings.append(
            Finding(f"{form} against softmax attention over every prefix", "equal", f"{error:.1e}", error < 1e-12)
        )
    for name, grows in (("aaren", False), ("attention", True)):
        (before, early), (later, late) = sizes[name]
        what = f"{name}: state after {short:,} and {long:,} tokens"
        figures = f"{before:,} and {later:,} bytes; a step {early:.0f} and {late:.0f} us"
        findings.append(Finding(what, "grows" if grows else "constant", figures, (later > before) == grows))
    return findings
