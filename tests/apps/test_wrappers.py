from types import SimpleNamespace

import numpy as np
import pytest

from echo import Echo
from seriatim.apps.rl.wrappers import PreviousAction, RandomProjection
from seriatim.core.errors import SeriatimError


def test_the_action_before_is_told():
    environment = PreviousAction(Echo(symbols=3, length=2))
    assert environment.observation_space.shape == (4 + 3 + 1,)
    first, _ = environment.reset(seed=1)
    told = np.eye(4)[environment.environment.first + 1].tolist()
    assert first.tolist() == [*told, 0, 0, 0, 1]
    second, reward, terminated, truncated, _ = environment.step(2)
    assert second.tolist() == [1, 0, 0, 0, 0, 0, 1, 0]
    assert (reward, terminated, truncated) == (0, False, False)
    assert environment.step(environment.environment.first)[1:4] == (1, True, False)


def test_a_projection_keeps_the_observation_and_hides_it():
    environment = RandomProjection(Echo(vector=True), features=5, trials=2)
    assert environment.observation_space.shape == (7,)
    seen, _ = environment.reset(seed=3)
    assert seen[5:].tolist() == [0, 0]
    truth = np.array([environment.environment.first + 1, 0])
    np.testing.assert_allclose(seen[:5], environment.map @ truth, rtol=1e-6)
    np.testing.assert_allclose(environment.map.T @ environment.map, 2 * np.eye(2), atol=1e-12)
    narrow = RandomProjection(Echo(symbols=6), features=3)
    narrow.reset(seed=3)
    np.testing.assert_allclose(narrow.map @ narrow.map.T, 2 * np.eye(3), atol=1e-12)


def test_every_episode_has_maps_of_its_own_and_a_seed_repeats_them():
    environment = RandomProjection(Echo(symbols=8), trials=1)
    maps = []
    for seed in (5, None, None, 5, 6):
        environment.reset(seed=seed)
        maps.append((environment.map, environment.action_map))
    assert not np.allclose(maps[0][0], maps[1][0])
    assert not np.allclose(maps[1][0], maps[2][0])
    assert not np.array_equal(maps[0][1], maps[1][1])
    np.testing.assert_array_equal(maps[0][0], maps[3][0])
    np.testing.assert_array_equal(maps[0][1], maps[3][1])
    assert not np.allclose(maps[0][0], maps[4][0])


@pytest.mark.parametrize("cut", [False, True])
def test_trials_share_their_maps_and_only_the_last_ends_the_episode(cut):
    environment = RandomProjection(Echo(symbols=3, length=2, cut=cut), trials=3)
    environment.reset(seed=0)
    drawn, said = environment.map, {int(right): wrong for wrong, right in enumerate(environment.action_map)}
    assert sorted(said) == [0, 1, 2]
    for trial in range(3):
        first = environment.environment.first
        assert environment.step(0)[1:4] == (0, False, False)
        seen, reward, terminated, truncated, _ = environment.step(said[first])  # the right answer, as it is to be said
        assert reward == 1
        assert (terminated, truncated) == (trial == 2 and not cut, trial == 2 and cut)
        assert seen[-2:].tolist() == [1, 1]
        shown = 0 if trial == 2 else environment.environment.first + 1
        np.testing.assert_allclose(seen[:-2], drawn[:, shown], rtol=1e-6)
    assert environment.map is drawn
    assert environment.environment.seeds == [0, None, None]


def test_actions_may_be_left_as_they_are():
    environment = RandomProjection(Echo(symbols=8), actions=False)
    environment.reset(seed=0)
    assert environment.action_map.tolist() == list(range(8))


def test_actions_that_are_vectors_are_turned_and_kept_within_bounds():
    inner = Echo(vector=True)
    inner.action_space = SimpleNamespace(shape=(3,), low=np.full(3, -0.5), high=np.full(3, 0.5))
    taken = []
    inner.step = lambda action: taken.append(action) or (np.zeros(2), 0.0, False, False, {})
    environment = RandomProjection(inner)
    environment.reset(seed=0)
    turn = environment.action_map
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    environment.step(np.array([0.1, 0.2, -0.1]))
    environment.step(np.array([9.0, 9.0, 9.0]))
    np.testing.assert_allclose(taken[0], turn @ [0.1, 0.2, -0.1], rtol=1e-6)
    assert np.abs(taken[1]).max() == 0.5


def test_bad_options_are_named():
    with pytest.raises(SeriatimError, match="trials is 0"):
        RandomProjection(Echo(), trials=0)
    inner = Echo()
    inner.action_space = SimpleNamespace(shape=(3,))
    with pytest.raises(SeriatimError, match=r"action_space is .* must be discrete"):
        PreviousAction(inner)
