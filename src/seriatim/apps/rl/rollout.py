"""Acting in several environments at once, and keeping what is needed to learn from it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from seriatim.apps.rl.environment import Environment, ends, first, flat
from seriatim.core import state as states
from seriatim.core.errors import SeriatimError, check_size
from seriatim.core.state import State
from seriatim.models.policy import Policy

__all__ = ["Collector", "Segment"]


class Segment(NamedTuple):
    """What B environments went through in T steps. All are (B, T) but the observations, the state and the returns."""

    observations: Tensor  # (B, T, features), or (B, T) ids
    reset: Tensor  # bool: an episode begins with this observation
    actions: Tensor  # int64, counted from 0
    log_probs: Tensor  # of the actions
    values: Tensor  # the critic's
    next_values: Tensor  # the critic's at what an action led to; 0 where the episode came to its end
    rewards: Tensor
    ended: Tensor  # bool: the episode ended with this action, or was cut off
    state: State  # the policy's before the first observation
    returns: Tensor  # of the episodes that ended, their sums of rewards, in the order in which they ended


class Collector:
    """Environments and a policy that acts in them; episodes and the policy's state go on from segment to segment.

    Args:
        policy: maps observations to logits and a value (:class:`seriatim.models.policy.Policy`).
        environments: as many as the rows of a batch, all of the same spaces.
        seed: of the environments and of what is drawn from the policy.

    Raises SeriatimError where the policy does not fit the environments.
    """

    def __init__(self, policy: Policy, environments: Sequence[Environment], seed: int = 0):
        if not environments:
            raise SeriatimError("environments is empty; there must be at least one")
        if not policy.causal:
            raise SeriatimError("the policy is not causal, so it cannot act step by step; its layers must be")
        self.policy, self.environments = policy, list(environments)
        for environment in environments:
            _check(policy, environment)
        self.random = torch.Generator().manual_seed(seed)
        self.space, self.first_action = environments[0].observation_space, first(environments[0].action_space)
        seeds = np.random.SeedSequence(seed).generate_state(len(environments)).tolist()
        self.now = [one.reset(seed=each)[0] for one, each in zip(environments, seeds, strict=True)]
        self.begins = torch.ones(len(environments), dtype=torch.bool)
        self.sums = np.zeros(len(environments))
        self.state = policy.init_state(len(environments))

    @torch.no_grad()
    def collect(self, steps: int) -> Segment:
        """Acts for so many steps in each environment, each action drawn from the policy."""
        check_size(steps=steps)
        start, rows, returns = self.state, [], []
        for _ in range(steps):
            x, begins = self._tensor(self.now), self.begins
            answers, self.state = self.policy.step(x, self._begun())
            answers = answers.float().cpu()
            log_policy = answers[:, :-1].log_softmax(1)
            actions = torch.multinomial(log_policy.exp(), 1, generator=self.random)
            log_probs, actions = log_policy.gather(1, actions).squeeze(1), actions.squeeze(1)
            rewards, cut, last, finished = self._act(actions.tolist())
            beyond = torch.zeros(len(cut)) if last is None else self._values(last, self.state) * cut
            rows.append((x, begins, actions, log_probs, answers[:, -1], rewards, self.begins, beyond))
            returns += finished
        x, reset, actions, log_probs, values, rewards, ended, beyond = (
            torch.stack(each, 1) for each in zip(*rows, strict=True)
        )
        following = torch.cat([values[:, 1:], self._values(self._tensor(self.now), self._begun()).unsqueeze(1)], 1)
        next_values = torch.where(ended, beyond, following)
        return Segment(x, reset, actions, log_probs, values, next_values, rewards, ended, start, torch.tensor(returns))

    def _begun(self) -> State:
        """The state, begun afresh where an episode begins."""
        if not self.begins.any():
            return self.state
        return states.where(self.begins, self.policy.init_state(len(self.environments)), self.state)

    def _values(self, x: Tensor, state: State) -> Tensor:
        return self.policy.step(x, state)[0][:, -1].float().cpu()

    def _act(self, actions: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None, list[float]]:
        """Rewards and what was cut off (B,), the observations then if any was, and the returns of what ended.

        Where one ended the next begins.
        """
        taken = [one.step(action + self.first_action) for one, action in zip(self.environments, actions, strict=True)]
        last, rewards, terminated, truncated, _ = (list(each) for each in zip(*taken, strict=True))
        ended = np.logical_or(terminated, truncated)
        self.sums += np.array(rewards, float)
        finished = self.sums[ended].tolist()
        self.sums[ended] = 0
        cut = torch.from_numpy(ended & ~np.array(terminated, bool))
        x = self._tensor(last) if cut.any() else None  # now, for a reset may write over it
        self.now = [self.environments[row].reset()[0] if over else last[row] for row, over in enumerate(ended)]
        self.begins = torch.from_numpy(ended)
        return torch.tensor(rewards, dtype=torch.float32), cut, x, finished

    def _tensor(self, observations: Sequence[Any]) -> Tensor:
        like = next(self.policy.parameters())
        if self.policy.reads_tokens:
            return torch.tensor([int(each) - first(self.space) for each in observations], device=like.device)
        return torch.from_numpy(np.stack([flat(self.space, each) for each in observations])).to(like)


def _check(policy: Policy, environment: Environment) -> None:
    wanted = ends(environment)
    for name, value in wanted.items():
        found = getattr(policy, name)
        if found != value:
            raise SeriatimError(f"the policy's {name} is {found}; the environment's is {value}")
