"""Environments around environments: what an agent must be told, and tasks that are new in every episode."""

from typing import Any, SupportsFloat

import numpy as np

from seriatim.apps.rl import environment as spaces
from seriatim.apps.rl.environment import Environment, Features
from seriatim.core.errors import SeriatimError, check_size

__all__ = ["PreviousAction", "RandomProjection"]


class PreviousAction:
    """Tells with each observation the action before it, and whether the episode just began, as further features.

    The observation becomes features (discrete ones as units). After it come `n` features, one of which is 1 (none at
    the beginning), and one that is 1 at the beginning alone.

    Args:
        environment: of discrete actions.

    Source: the environments of Lu et al., 2023, arXiv:2303.03982, section 5, in its official code.
    """

    def __init__(self, environment: Environment):
        self.environment, self.action_space = environment, environment.action_space
        if not spaces.is_discrete(self.action_space):
            raise SeriatimError(f"the environment's action_space is {self.action_space}; it must be discrete")
        self.observation_space = Features(
            (spaces.features(environment.observation_space) + int(self.action_space.n) + 1,)
        )

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """The first observation of an episode."""
        observation, info = self.environment.reset(seed=seed)
        return self._told(observation, None), info

    def step(self, action: int) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """What an action leads to."""
        observation, reward, terminated, truncated, info = self.environment.step(action)
        return self._told(observation, action), reward, terminated, truncated, info

    def _told(self, observation: Any, action: int | None) -> np.ndarray:
        told = np.zeros(self.observation_space.shape, np.float32)
        first = spaces.flat(self.environment.observation_space, observation)
        told[: len(first)] = first
        told[-1 if action is None else len(first) + action - spaces.first(self.action_space)] = 1
        return told


class RandomProjection:
    r"""An environment seen and moved through linear maps that are new in every episode, to be found out from rewards.

    .. math:: x' = P x, \quad a = Q a'

    with P (features, observation), whose columns (or rows, where it has fewer) are orthogonal and of length √2. Of
    discrete actions Q is a permutation; of vectors it is an orthogonal matrix, the result being kept within the
    environment's bounds. An episode is `trials` episodes of the environment under the same maps, so that what was
    learned in one pays in the next. The agent reads P x, the last reward, and 1 where a trial has just ended.

    Args:
        environment: what is projected.
        features: of the projected observation; None is as many as it has.
        trials: episodes of the environment in one of this.
        actions: whether actions are mapped too.

    `reset(seed=...)` also says which maps come; test with seeds that training did not see.

    Source: Lu et al., 2023, arXiv:2303.03982, section 5; P's distribution and the trials of its official code, where
        a trial begins in the state that the first began in; here it begins as any episode does.
    """

    def __init__(self, environment: Environment, features: int | None = None, trials: int = 16, actions: bool = True):
        size = spaces.features(environment.observation_space)
        check_size(features=size if features is None else features, trials=trials)
        self.environment, self.action_space = environment, environment.action_space
        self.features, self.trials, self.actions = size if features is None else features, trials, actions
        self.observation_space = Features((self.features + 2,))
        self.size, self.random = size, np.random.default_rng(0)

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Draws the maps; the first observation."""
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.trial = 0
        self.map = np.sqrt(2) * _orthogonal(self.features, self.size, self.random)
        self.action_map = self._draw_actions()
        observation, info = self.environment.reset(seed=seed)
        return self._seen(observation, 0.0, False), info

    def step(self, action: Any) -> tuple[np.ndarray, SupportsFloat, bool, bool, dict[str, Any]]:
        """What an action leads to; where it ends a trial but not the last, the next trial's first observation."""
        observation, reward, terminated, truncated, info = self.environment.step(self._meant(action))
        ended = terminated or truncated
        self.trial += ended
        last = self.trial == self.trials
        if ended and not last:
            observation, _ = self.environment.reset()
        return self._seen(observation, float(reward), ended), reward, last and terminated, last and truncated, info

    def _draw_actions(self) -> np.ndarray:
        space = self.action_space
        if spaces.is_discrete(space):
            return self.random.permutation(space.n) if self.actions else np.arange(space.n)
        size = spaces.features(space)
        return _orthogonal(size, size, self.random) if self.actions else np.eye(size)

    def _meant(self, action: Any) -> Any:
        if spaces.is_discrete(self.action_space):
            first = spaces.first(self.action_space)
            return int(self.action_map[action - first]) + first
        mapped = (self.action_map @ np.asarray(action, np.float64).reshape(-1)).reshape(self.action_space.shape)
        return np.clip(mapped, self.action_space.low, self.action_space.high).astype(np.float32)

    def _seen(self, observation: Any, reward: float, ended: bool) -> np.ndarray:
        projected = self.map @ spaces.flat(self.environment.observation_space, observation)
        return np.concatenate([projected, [reward, ended]]).astype(np.float32)


def _orthogonal(rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Uniform among the matrices whose columns (or rows, where they are fewer) are orthonormal."""
    tall = random.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(tall)
    q = q * np.sign(np.diag(r))
    return q if rows >= columns else q.T
