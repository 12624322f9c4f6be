import sys
from types import SimpleNamespace

import numpy as np
import pytest

from echo import Echo
from seriatim.apps.rl.environment import ends, features, flat, make
from seriatim.apps.rl.wrappers import PreviousAction
from seriatim.core.errors import SeriatimError

DISCRETE, SEVERAL = SimpleNamespace(n=3), SimpleNamespace(nvec=np.array([2, 3]), shape=(2,))
GRID = SimpleNamespace(shape=(2, 2))


def test_observations_become_features():
    assert flat(DISCRETE, 1).tolist() == [0, 1, 0]
    assert flat(SEVERAL, np.array([1, 2])).tolist() == [0, 1, 0, 0, 1]
    assert flat(GRID, np.array([[1, 2], [3, 4]], np.uint8)).tolist() == [1, 2, 3, 4]
    for space, observation in ((DISCRETE, 2), (SEVERAL, [0, 0]), (GRID, np.ones((2, 2)))):
        assert flat(space, observation).shape == (features(space),)
        assert flat(space, observation).dtype == np.float32


def test_discrete_spaces_may_begin_at_any_number():
    assert flat(SimpleNamespace(n=3, start=5), 7).tolist() == [0, 0, 1]
    several = SimpleNamespace(nvec=np.array([2, 3]), start=np.array([1, -1]), shape=(2,))
    assert flat(several, np.array([2, -1])).tolist() == [0, 1, 1, 0, 0]


def test_a_number_of_bits_is_no_discrete_space():
    """gymnasium's MultiBinary has an `n` too, and a shape."""
    bits = SimpleNamespace(n=4, shape=(4,))
    assert features(bits) == 4
    assert flat(bits, np.array([1, 0, 1, 1], np.int8)).tolist() == [1, 0, 1, 1]
    environment = Echo()
    environment.observation_space = bits
    assert ends(environment) == {"observations": 4, "actions": 3, "discrete": False}
    environment.action_space = bits
    with pytest.raises(SeriatimError, match=r"action_space is .* must be discrete"):
        ends(environment)
    with pytest.raises(SeriatimError, match=r"action_space is .* must be discrete"):
        PreviousAction(environment)


def test_the_ends_of_a_policy_fit_the_spaces():
    assert ends(Echo(symbols=3)) == {"observations": 4, "actions": 3, "discrete": True}
    assert ends(Echo(symbols=3, vector=True)) == {"observations": 2, "actions": 3, "discrete": False}


def test_spaces_that_cannot_be_read_are_named():
    environment = Echo()
    environment.observation_space = "words"
    with pytest.raises(SeriatimError, match="observation_space is words"):
        ends(environment)
    environment.action_space = GRID
    with pytest.raises(SeriatimError, match=r"action_space is .* must be discrete"):
        ends(environment)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(SeriatimError, match=r"gymnasium is not installed: pip install 'seriatim\[rl\]'"):
        make("popgym-RepeatFirstEasy-v0")


def test_environments_of_popgym():
    pytest.importorskip("popgym", reason="the extra `rl` is not installed")
    environment = make("popgym-RepeatFirstEasy-v0")
    assert ends(environment) == {"observations": 4, "actions": 4, "discrete": True}
    first, _ = environment.reset(seed=0)
    rewards = []
    while True:
        _, reward, terminated, truncated, _ = environment.step(first)
        rewards.append(reward)
        if terminated or truncated:
            break
    assert len(rewards) == 51
    assert sum(rewards) == pytest.approx(1)


def test_an_unknown_name_is_one_clear_line():
    pytest.importorskip("popgym", reason="the extra `rl` is not installed")
    for name in ("popgym-RepeatLast-v0", "no_such_module:Game-v0"):
        with pytest.raises(SeriatimError, match=f"'{name}' cannot be made: [^\n]*$"):
            make(name)
