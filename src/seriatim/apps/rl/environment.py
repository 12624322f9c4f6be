"""Environments: what is used of gymnasium's API, so that gymnasium's own and anybody's class will do."""

from importlib import import_module
from math import prod
from typing import Any, NamedTuple, Protocol, SupportsFloat

import numpy as np

from seriatim.core.errors import SeriatimError

__all__ = ["Environment", "Features", "ends", "features", "first", "flat", "is_discrete", "make"]


class Environment(Protocol):
    """Its spaces have `n` (discrete), `nvec` (several discrete ones) or `shape` (features), as gymnasium's have.

    Discrete ones count from `start`, where they have one, else from 0.
    """

    @property
    def observation_space(self) -> Any: ...
    @property
    def action_space(self) -> Any: ...
    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]: ...
    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]: ...


class Features(NamedTuple):
    """A space of vectors."""

    shape: tuple[int, ...]


def make(name: str, **options: Any) -> Environment:
    """An environment that gymnasium or popgym registers, such as "popgym-RepeatFirstEasy-v0".

    Raises SeriatimError where they are not installed, or know no environment of that name and options.
    """
    try:
        import gymnasium

        import_module("popgym")  # which registers its environments
    except ImportError as error:
        raise SeriatimError(
            f"environment {name!r} needs gymnasium and popgym, and {error.name} is not installed: "
            "pip install 'seriatim[rl]'"
        ) from error
    try:
        return gymnasium.make(name, disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise SeriatimError(f"environment {name!r} cannot be made: {' '.join(str(error).split())}") from error


def ends(environment: Environment) -> dict[str, Any]:
    """The options of a policy that fit an environment: `build("policy", **ends(environment), dim=64)`.

    Raises SeriatimError where the actions are not discrete or the observations are neither numbers nor features.
    """
    space, actions = environment.observation_space, environment.action_space
    if not is_discrete(actions):
        raise SeriatimError(f"the environment's action_space is {actions}; it must be discrete")
    discrete = is_discrete(space)
    return {
        "observations": int(space.n) if discrete else features(space),
        "actions": int(actions.n),
        "discrete": discrete,
    }


def is_discrete(space: Any) -> bool:
    """Whether it holds numbers, of which there are `n`; a space of bits has an `n` too, and a shape."""
    return hasattr(space, "n") and not getattr(space, "shape", None)


def first(space: Any) -> int:
    """The first of the numbers in a discrete space."""
    return int(getattr(space, "start", 0))


def features(space: Any) -> int:
    """How many features `flat` makes of an observation of a space."""
    if is_discrete(space):
        return int(space.n)
    if hasattr(space, "nvec"):
        return int(np.sum(space.nvec))
    if not getattr(space, "shape", None):
        raise SeriatimError(f"the environment's observation_space is {space}; it must be discrete or of features")
    return prod(space.shape)


def flat(space: Any, observation: Any) -> np.ndarray:
    """An observation as float32 features: discrete ones as units at their place."""
    if is_discrete(space):
        return np.eye(space.n, dtype=np.float32)[observation - first(space)]
    if hasattr(space, "nvec"):
        units = zip(space.nvec.flat, (observation - np.asarray(getattr(space, "start", 0))).flat, strict=True)
        return np.concatenate([np.eye(size, dtype=np.float32)[index] for size, index in units])
    return np.asarray(observation, np.float32).reshape(-1)
