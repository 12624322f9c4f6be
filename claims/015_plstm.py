"""A recurrent network over the grid of an image's patches tells whether an arrow points at a circle in images larger
than it was trained on, where a vision transformer does not.

Images are the paper's at half their resolution, in larger patches (grids of 4 x 4, then 8 x 8); both models are trained
on the same fixed images, turned and mirrored, and have equally many parameters. The paper trains 12 layers of 192
features for 39,000 batches of 128 images of full resolution; in the few minutes here neither model leaves chance, so
nothing is said of larger images. Also tried, of pLSTM only, one seed: a quarter of the resolution, patches of 12
pixels, 64 features, 750 steps at rate 2e-3: chance as well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import parameters, rate_of
from seriatim.data.task_batches import generator
from seriatim.ops import backend
from seriatim.tasks.arrow_pointing import ArrowPointing
from seriatim.vision.base import VisionBackbone
from seriatim.vision.plstm_vision import GridPLSTM, PLSTMVision
from seriatim.vision.vit import ViT

SOURCE = "2506.11997"
SIZE, SHRINK, PATCH, DIM, DEPTH, HEADS = 96, 2, 24, 32, 4, 2
BATCH, RATE, DECAY = 64, 1e-3, 0.05
STEPS = {"pLSTM": 800, "ViT": 2000}
MARGIN = 0.05  # about three standard deviations of a rate
LEARNT = 0.6  # below it nothing was learned that could be compared
MEAN, DEVIATION = 0.03, 0.15  # of black, roughly
Data = tuple[Tensor, Tensor]


def drawn(size: int, count: int, seed: int) -> Data:
    """Black, from 0 to 255, and labels."""
    task, source = ArrowPointing(size, SHRINK), generator(seed, size)
    parts = [task.sample(100, source) for _ in range(count // 100)]
    black = [((1 - part.images[:, :1]) * 255).round().to(torch.uint8) for part in parts]
    return torch.cat(black), torch.cat([part.labels for part in parts])


def seen(black: Tensor) -> Tensor:
    """What a model sees."""
    return (black.float() / 255 - MEAN) / DEVIATION


def classifier(backbone: VisionBackbone) -> nn.Module:
    """With a last linear layer."""
    layer = nn.Linear(backbone.features, 2)
    nn.init.normal_(layer.weight, std=(2 / (5 * backbone.features)) ** 0.5)
    return nn.Sequential(backbone, layer)


def fit(model: nn.Module, data: Data, steps: int, seed: int) -> float:
    """Trains it by AdamW and returns the mean loss of the last tenth of the steps."""
    source, losses = generator(seed, 0), []
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate_of(step, steps))
    for _ in range(steps):
        index = torch.randint(len(data[0]), (BATCH,), generator=source)
        turns, mirrored = torch.randint(4, (2,), generator=source).tolist()
        images = seen(data[0][index]).rot90(turns, (2, 3))
        loss = F.cross_entropy(model(images.flip(3) if mirrored % 2 else images), data[1][index])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    last = losses[-max(1, steps // 10) :]
    return sum(last) / len(last)


@torch.no_grad()
def right(model: nn.Module, data: Data) -> float:
    """The share of right labels."""
    found = [model(seen(images)).argmax(1) for images in data[0].split(BATCH)]
    return float((torch.cat(found) == data[1]).float().mean())


def of_as_many_parameters(size: int, model: nn.Module) -> nn.Module:
    """A ViT whose feed-forward layers are as wide as it takes."""
    vit = classifier(ViT(DIM, DEPTH, HEADS, PATCH, 1, size))
    units = (parameters(model) - parameters(vit)) / (DEPTH * (2 * DIM + 1))
    return classifier(ViT(DIM, DEPTH, HEADS, PATCH, 1, size, expansion=4 + units / DIM))


def exact() -> Finding:
    """Merged blocks against the recurrence node by node, both modes."""
    x, worst = torch.randn(1, 6, 5, 16, dtype=torch.float64), 0.0
    for mode in ("P", "D"):
        layer = GridPLSTM(16, 2, mode).double()
        for parameter in layer.parameters():
            nn.init.normal_(parameter, std=0.5)
        with torch.no_grad():
            found = layer(x)
            with backend("reference"):
                wanted = layer(x)
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max()))
    return Finding("a grid in blocks against node by node", "equal", f"{worst:.1e}", worst < 1e-12)


def run(quick: bool, seed: int) -> list[Finding]:
    """Right answers on images of the size trained on and on images with twice their sides."""
    findings = [exact()]
    count, tests = (100, 100) if quick else (10_000, 1_000)
    data, same, larger = drawn(SIZE, count, seed), drawn(SIZE, tests, seed + 1), drawn(2 * SIZE, tests, seed + 1)
    rates: dict[str, tuple[float, float]] = {}
    for name in STEPS:
        torch.manual_seed(seed)
        model = classifier(PLSTMVision(DIM, DEPTH, HEADS, PATCH, 1, SIZE))
        if name == "ViT":
            model = of_as_many_parameters(SIZE, model)
        loss = fit(model, data, 2 if quick else STEPS[name], seed)
        rates[name] = right(model, same), right(model, larger)
        ours = f"{rates[name][0]:.2f}, {rates[name][1]:.2f} ({parameters(model):,} parameters, loss {loss:.3f})"
        what = f"{name}, {STEPS[name]:,} steps: right at {SIZE} x {SIZE} and {2 * SIZE} x {2 * SIZE} pixels"
        findings.append(Finding(what, "", ours, None))
    above = rates["pLSTM"][1] > rates["ViT"][1] + MARGIN
    learnt = not quick and max(rate for pair in rates.values() for rate in pair) > LEARNT
    ours = f"{rates['pLSTM'][1]:.2f}, {rates['ViT'][1]:.2f}"
    findings.append(
        Finding("larger images: pLSTM, ViT", "pLSTM goes on, ViT does not", ours, above if learnt else None)
    )
    return findings
