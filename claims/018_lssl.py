"""A linear state-space layer is a recurrence, a convolution and a differential equation at once: the three agree, its
matrix and its step sizes are trained, and other sampling rates need no training.
"""

import torch
from torch import nn

import seriatim as sq
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import answers, trained
from seriatim.tasks.copying import Copying

SOURCE = "2110.13985"
GUESS = 1 / 8


@torch.no_grad()
def views(length: int) -> dict[str, float]:
    """Relative differences of the other views from the recurrence."""
    mixer = sq.build("lssl", dim=4, channels=2, discretization="zoh").double()
    x = torch.randn(1, length, 4, dtype=torch.float64)
    recurrence = mixer(x)[0]
    A, B, C, _ = mixer.continuous()
    one, h, rows = torch.eye(A.size(1), dtype=A.dtype), torch.zeros_like(B), []
    for u in x[0]:  # the differential equation, solved over each token's time: the input is held
        decay = A.matrix_exp()
        held = torch.linalg.solve(A, (decay - one) @ (B * u[:, None]).unsqueeze(2))
        h = (decay @ h.unsqueeze(2) + held).squeeze(2)
        rows.append((C @ h.unsqueeze(2)).squeeze(2))
    equation = mixer.readout(x, x, torch.stack(rows)[None])
    others = {"the convolution": mixer.convolve(x), "the differential equation": equation}
    return {name: ((y - recurrence).abs().max() / recurrence.abs().max()).item() for name, y in others.items()}


def moved(model: nn.Module, before: dict[str, torch.Tensor], names: tuple[str, ...]) -> float:
    """The least relative change of the parameters of these names."""
    changes = [
        ((z - before[name]).norm() / before[name].norm().clamp(min=1e-3)).item()
        for name, z in model.named_parameters()
        if name.endswith(names)
    ]
    return min(changes)


@torch.no_grad()
def resampled(model: nn.Module, task: Copying, delay: int) -> float:
    """Right answers where every token comes twice, read at half the rate."""
    mixers = [z for z in model.modules() if isinstance(z, type(sq.build("lssl", dim=4)))]
    batch = task.sample(128, delay, torch.Generator().manual_seed(1))
    for mixer in mixers:
        mixer.rate = 0.5
    logits, _ = model(batch.tokens.repeat_interleave(2, 1))
    for mixer in mixers:
        mixer.rate = 1.0
    right = task.right(logits[:, 1::2].argmax(2), batch)
    return (right.sum() / batch.scored.sum()).item()


def run(quick: bool, seed: int) -> list[Finding]:
    """Views in float64; a model trained to copy after a delay, and the same at another rate."""
    torch.manual_seed(seed)
    length = 50 if quick else 400
    findings = [
        Finding(f"{name} against the recurrence, {length} tokens", "equal", f"{error:.1e}", error < 1e-9)
        for name, error in views(length).items()
    ]
    task, delay = Copying(count=4, symbols=8), 20 if quick else 100
    layers = [{"mixer": "lssl", "channels": 2}] * 2
    training = {"lengths": (delay, delay), "rate": 1e-2, "decay": 0.0, "batch": 32, "seed": seed}
    start = dict(trained(task, layers, steps=0, **training).named_parameters())
    model = trained(task, layers, steps=2 if quick else 400, **training)
    for what, names in {"matrix": ("T_diagonal", "T_below", "E", "P", "Q"), "step": ("log_step",)}.items():
        change = moved(model, start, tuple(f"mixer.{name}" for name in names))
        findings.append(Finding(f"the {what} is trained: least relative change", "", f"{change:.2g}", change > 0))
    found = answers(model, task, delay)
    gru = answers(trained(task, ["gru", "gru"], steps=2 if quick else 400, **training), task, delay)
    what = f"copying up to 4 symbols after {delay} tokens: LSSL (GRU)"
    judged = not quick and max(found, gru) > 2 * GUESS
    figures = f"{found:.2f} ({gru:.2f}) right"
    findings.append(Finding(what, "long memory", figures, found > max(0.9, gru) if judged else None))
    again = resampled(model, task, delay)
    what = "the same model, every token twice and steps half as long, not trained again (tokens are no smooth signal)"
    judged = not quick and found > 2 * GUESS
    findings.append(
        Finding(what, "little lost (speech)", f"{again:.2f} right", again > 0.9 * found if judged else None)
    )
    return findings
