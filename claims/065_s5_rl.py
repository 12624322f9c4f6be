"""A state space (S5) whose scan empties the state where an episode begins can be trained by reinforcement on whole
segments; it learns tasks of memory better than a GRU in less time, and its time grows more slowly with their length
than a Transformer's.

The environments are popgym's, told the previous action, as the paper's are: the suit of a card is to be told after
four steps (RepeatPrevious), or that of the first card until the end (RepeatFirst), in episodes of 51 or so. Returns are
from -0.5, where one guesses, to 1. All models have two layers between the same encoder, actor and critic, as many
parameters within 2 %, and the same training, without a search for what suits each. Attention sees 64 steps, more than
an episode, where it learns, and all that came before where its time is measured. What stands "after" some seconds is
the return when the fastest of all runs had ended. Times are the processor's, on one thread; the paper's are a GPU's,
where a GRU waits at every step. Random projections (`docs/reinforcement.md`) were not trained on.

Longer, in one run each on RepeatFirst: S5 first came to 0.7 after 130,000 steps, and fell back to 0.1 and rose again
until 240,000; a GRU of width 64 came to 1.0 after 200,000 and stayed there.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import seriatim as sq
from seriatim.apps.rl.environment import ends, make
from seriatim.apps.rl.training import PPOSettings, train
from seriatim.apps.rl.wrappers import PreviousAction
from seriatim.cli.claims.claim import Finding
from seriatim.cli.claims.small import parameters, spread
from seriatim.core.build import Spec
from seriatim.models.policy import Policy

SOURCE = "2303.03982"
S5: Spec = {"mixer": "s5", "activation": "full_glu", "c_init": "lecun_normal"}
MODELS: dict[str, tuple[Spec, int]] = {
    "S5": (S5, 64),
    "GRU": ("gru", 54),
    "attention": ({"mixer": "window", "size": 64}, 64),
}
SETTINGS = PPOSettings(steps=128, epochs=8, minibatches=4, learning_rate=1e-3, trace=0.95, entropy_weight=0.01)
ENVIRONMENTS = ("RepeatPreviousEasy", "RepeatFirstEasy")
LEARNED = 0.5  # a return that no policy without memory has


class Point(NamedTuple):
    steps: int
    seconds: float
    reward: float  # the mean return of the episodes that ended in the last three updates


def policy(layer: Spec, dim: int, **sizes: int) -> Policy:
    return sq.build("policy", dim=dim, hidden=64, layers=[layer, layer], **sizes)


def learn(name: str, environment: str, updates: int, seed: int) -> list[Point]:
    """A point for each update."""
    torch.manual_seed(seed)
    environments = [PreviousAction(make(environment)) for _ in range(16)]
    training = train(policy(*MODELS[name], **ends(environments[0])), environments, SETTINGS, seed)
    points: list[Point] = []
    seconds, recent = 0.0, []
    for update, _ in zip(training, range(updates), strict=False):
        seconds += sum(update.seconds)
        recent = [*recent[-2:], update.returns]
        points.append(Point(update.steps, seconds, torch.cat(recent).mean().item()))
    return points


def curves(environment: str, updates: int, seeds: list[int], judged: bool) -> list[Finding]:
    """Returns by steps and by time, and when each model had learned."""
    runs = {name: [learn(name, f"popgym-{environment}-v0", updates, seed) for seed in seeds] for name in MODELS}
    shortest = min(run[-1].seconds for found in runs.values() for run in found)
    by_steps = {name: [run[-1].reward for run in found] for name, found in runs.items()}
    by_time = {
        name: [max((point for point in run if point.seconds <= shortest), default=run[0]).reward for run in found]
        for name, found in runs.items()
    }
    findings = []
    for what, figures in ((f"{runs['S5'][0][-1].steps:,} steps", by_steps), (f"{shortest:.0f} s", by_time)):
        means = {name: statistics.mean(values) for name, values in figures.items()}
        learned = judged and max(means.values()) > LEARNED
        findings.append(
            Finding(
                f"{environment}: return after {what}, mean of {len(seeds)} seeds",
                "S5 above GRU",
                "; ".join(f"{name} {spread(values)}" for name, values in figures.items()),
                means["S5"] > means["GRU"] if learned else None,
            )
        )
    told = "; ".join(f"{name} {', '.join(map(first_above, found))}" for name, found in runs.items())
    findings.append(Finding(f"{environment}: when the return was first above {LEARNED}", "", told, None))
    return findings


def first_above(points: list[Point]) -> str:
    for point in points:
        if point.reward > LEARNED:
            return f"{point.seconds:.0f} s ({point.steps:,} steps)"
    return "never"


def update_time(length: int, layer: Spec, dim: int, tokens: int) -> Callable[[], float]:
    """Measures the reading of segments, each an episode, forward and backward, in microseconds a step."""
    model = policy(layer, dim, observations=9, actions=4)
    x = torch.randn(max(1, tokens // length), length, 9)
    reset = torch.zeros(x.shape[:2], dtype=torch.bool)
    reset[:, 0] = True

    def measure() -> float:
        start = time.process_time()
        model(x, reset=reset)[0].square().mean().backward()
        return 1e6 * (time.process_time() - start) / reset.numel()

    return measure


def lengths(at: list[int], repeats: int, judged: bool) -> list[Finding]:
    """The time of an update at growing lengths; attention over all that came before, without a window."""
    layers: dict[str, tuple[Spec, int]] = {**MODELS, "attention": ("attention", 64)}
    works = {(name, length): update_time(length, *layers[name], max(at)) for length in at for name in layers}
    times = {key: [work() for _ in range(repeats + 1)][1:] for key, work in works.items()}
    least = {key: min(found) for key, found in times.items()}
    findings = []
    for name in layers:
        size = parameters(policy(*layers[name], observations=9, actions=4))
        told = f"{', '.join(f'{least[name, length]:.1f}' for length in at)} ({size:,} parameters)"
        findings.append(
            Finding(f"{name}: us a step, segments of {', '.join(f'{length:,}' for length in at)}", "", told, None)
        )
    grown = {name: least[name, at[-1]] / least[name, at[0]] for name in layers}
    what = f"time of an update for {at[-1]:,} steps over that for {at[0]:,}, a step: S5, attention"
    findings.append(
        Finding(
            what,
            "S5 grows less",
            f"{grown['S5']:.2f}, {grown['attention']:.2f}",
            grown["S5"] < grown["attention"] if judged else None,
        )
    )
    ratio = least["GRU", at[-1]] / least["S5", at[-1]]
    findings.append(
        Finding(
            f"GRU's time over S5's, segments of {at[-1]:,}",
            "more than 5 (GPU)",
            f"{ratio:.2f}",
            ratio > 5 if judged else None,
        )
    )
    return findings


def resets(length: int) -> Finding:
    """A segment with resets against its episodes read one by one, outputs and gradients in float64."""
    model = policy(S5, 64, observations=9, actions=4).double()
    x = torch.randn(1, length, 9, dtype=torch.float64)
    starts = [0, 1, length // 3, length - 2]
    reset = torch.zeros(1, length, dtype=torch.bool)
    reset[0, starts] = True
    pieces = [x[:, a:b] for a, b in zip(starts, [*starts[1:], length], strict=True)]
    answers = model(x, reset=reset)[0], torch.cat([model(piece)[0] for piece in pieces], 1)
    gradients = [torch.autograd.grad(answer.square().sum(), list(model.parameters())) for answer in answers]
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in [answers, *zip(*gradients, strict=True)]]
    what = f"resets in the scan against episodes on their own, {length} steps, answers and gradients"
    return Finding(what, "equal", f"{max(errors):.1e}", max(errors) < 1e-9)


def run(quick: bool, seed: int) -> list[Finding]:
    """Resets; the time of updates; learning to remember."""
    findings = [resets(100 if quick else 1000)]
    findings += lengths([64, 128], 1, False) if quick else lengths([256, 1024, 4096], 5, True)
    updates, seeds = (1, [seed]) if quick else (40, [seed, seed + 1])
    for environment in ENVIRONMENTS:
        findings += curves(environment, updates, seeds, judged=not quick)
    return findings
