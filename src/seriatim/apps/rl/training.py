"""Training a policy that remembers by proximal policy optimisation."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seriatim.apps.rl.environment import Environment
from seriatim.apps.rl.rollout import Collector, Segment
from seriatim.core import state as states
from seriatim.core import taps
from seriatim.core.errors import SeriatimError, check_number, check_positive, check_size
from seriatim.models.policy import Policy
from seriatim.objectives.ppo import Experience, PPOLoss, advantages, check_discounts, ppo

__all__ = ["PPOSettings", "Update", "train", "update"]


@dataclass(frozen=True)
class PPOSettings:
    """How a policy is trained. The defaults are those of Lu et al., 2023, for 64 environments.

    Args:
        steps: of each environment between two updates; gradients flow through all of them.
        epochs: times that what was collected is gone through.
        minibatches: groups of environments, each a step of Adam.
        learning_rate: of Adam.
        discount, trace: γ and λ of the advantages.
        clip: ε: how far the policy may move from the one that acted.
        value_weight, entropy_weight: of the parts of the loss.
        longest_gradient: norm of the gradient; longer ones are scaled down.
    """

    steps: int = 1024
    epochs: int = 30
    minibatches: int = 8
    learning_rate: float = 5e-5
    discount: float = 0.99
    trace: float = 1.0
    clip: float = 0.2
    value_weight: float = 1.0
    entropy_weight: float = 0.0
    longest_gradient: float = 0.5

    def __post_init__(self) -> None:
        check_size(steps=self.steps, epochs=self.epochs, minibatches=self.minibatches)
        check_positive(learning_rate=self.learning_rate, clip=self.clip, longest_gradient=self.longest_gradient)
        check_number(value_weight=self.value_weight, entropy_weight=self.entropy_weight)
        check_discounts(self.discount, self.trace)


class Update(NamedTuple):
    """An update of the weights and what led to it."""

    steps: int  # in all environments, since the training began
    returns: Tensor  # of the episodes that ended meanwhile
    loss: PPOLoss  # the mean of all minibatches, without gradients
    seconds: tuple[float, float]  # of the processor's time, for acting and for learning


def train(
    policy: Policy, environments: Sequence[Environment], settings: PPOSettings | None = None, seed: int = 0
) -> Iterator[Update]:
    """Trains a policy in place, an update each time that the next one is asked for, without an end.

    Args:
        policy: its spaces must be those of the environments (:func:`seriatim.apps.rl.environment.ends`).
        environments: they act side by side; a minibatch holds some of them, with all their steps.
        settings: None is the defaults.
        seed: of the environments, the actions and the minibatches.

    Raises SeriatimError where policy, environments and settings do not fit each other.
    """
    settings = settings or PPOSettings()
    if len(environments) % settings.minibatches:
        raise SeriatimError(
            f"there are {len(environments)} environments and minibatches is {settings.minibatches}; "
            "the environments must be a multiple of it"
        )
    return _train(policy, Collector(policy, environments, seed), settings, seed)


def _train(policy: Policy, collector: Collector, settings: PPOSettings, seed: int) -> Iterator[Update]:
    optimiser = torch.optim.Adam(policy.parameters(), settings.learning_rate, eps=1e-5)
    random = torch.Generator().manual_seed(seed)
    steps = 0
    while True:
        start = time.process_time()
        segment = collector.collect(settings.steps)
        acted = time.process_time()
        loss = update(policy, optimiser, segment, settings, random)
        steps += segment.actions.numel()
        yield Update(steps, segment.returns, loss, (acted - start, time.process_time() - acted))


def update(
    policy: Policy, optimiser: torch.optim.Optimizer, segment: Segment, settings: PPOSettings, random: torch.Generator
) -> PPOLoss:
    """Learns from a segment, in place: in every epoch the environments are dealt anew into minibatches.

    Each minibatch is read in one call, from the state in which its environments began the segment, with resets where
    episodes begin.
    """
    better = advantages(
        segment.rewards, segment.values, segment.next_values, segment.ended, settings.discount, settings.trace
    )
    lived = Experience(segment.actions, segment.log_probs, segment.values, better)
    losses = []
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(better), generator=random).chunk(settings.minibatches):
            with taps.collect(policy, pattern="") as found:
                x, reset = segment.observations[rows], segment.reset[rows]
                answers, _ = policy(x, states.take(segment.state, rows), reset=reset.to(x.device))
            answers = answers.float().cpu()
            loss = ppo(
                answers[..., :-1],
                answers[..., -1],
                Experience(*(each[rows] for each in lived)),
                clip=settings.clip,
                value_weight=settings.value_weight,
                entropy_weight=settings.entropy_weight,
            )
            optimiser.zero_grad()
            (loss.total + found.loss()).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), settings.longest_gradient)
            optimiser.step()
            losses.append(torch.stack(loss).detach())
    return PPOLoss(*torch.stack(losses).mean(0))
