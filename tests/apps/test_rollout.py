import numpy as np
import pytest
import torch

import seriatim as sq
from echo import Echo
from seriatim.apps.rl.environment import ends
from seriatim.apps.rl.rollout import Collector
from seriatim.apps.rl.wrappers import PreviousAction, RandomProjection
from seriatim.core.errors import SeriatimError


def policy_for(environment, layers=("s5",), **options):
    return sq.build("policy", **ends(environment), dim=8, hidden=8, layers=list(layers), **options)


def collector(**options):
    environments = [Echo(**options, length=length) for length in (2, 3, 5)]
    return Collector(policy_for(environments[0]), environments, seed=4)


@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("layer", ["s5", "gru", {"mixer": "window", "heads": 2, "size": 4}])
def test_a_segment_read_at_once_says_what_was_said_step_by_step(vector, layer):
    environments = [Echo(length=length, vector=vector) for length in (2, 3, 5)]
    policy = policy_for(environments[0], [layer])
    found = Collector(policy, environments, seed=4)
    for _ in range(2):  # the second goes on in the middle of episodes
        segment = found.collect(7)
        answers, state = policy(segment.observations, segment.state, reset=segment.reset)
        torch.testing.assert_close(answers[..., -1], segment.values, atol=1e-5, rtol=1e-4)
        log_probs = answers[..., :-1].log_softmax(-1).gather(-1, segment.actions.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(log_probs, segment.log_probs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(state, found.state, atol=1e-5, rtol=1e-4)


def test_episodes_begin_end_and_go_on_in_the_next_segment():
    found = collector()
    first, second = found.collect(4), found.collect(4)
    ended, reset, rewards = (
        torch.cat([getattr(first, name), getattr(second, name)], 1) for name in ("ended", "reset", "rewards")
    )
    for row, length in enumerate((2, 3, 5)):
        assert ended[row].nonzero().flatten().tolist() == list(range(length - 1, 8, length))
        assert reset[row].nonzero().flatten().tolist() == list(range(0, 8, length))
    assert first.observations[:, 0].min() > 0
    assert (torch.cat([first.observations, second.observations], 1)[~reset] == 0).all()
    assert first.returns.tolist() + second.returns.tolist() == rewards.T[ended.T].tolist()
    assert [len(first.returns), len(second.returns)] == [3, 4]


def test_rewards_are_those_of_the_actions():
    found = collector()
    environment = found.environments[1]
    firsts = [environment.first]
    reset = environment.reset

    def noted(seed=None):
        observation = reset(seed=seed)
        firsts.append(environment.first)
        return observation

    environment.reset = noted
    segment = found.collect(30)
    last = segment.actions[1][segment.ended[1]].tolist()
    expected = [float(action == first) for action, first in zip(last, firsts[:10], strict=True)]
    assert segment.rewards[1][segment.ended[1]].tolist() == expected
    assert 0 < sum(expected) < 10


def test_the_value_of_what_comes_next_is_0_at_an_end_and_goes_on_past_a_cut():
    for cut in (False, True):
        found = collector(cut=cut)
        segment = found.collect(6)
        following = found.collect(1)
        values = torch.cat([segment.values, following.values], 1)
        inside = ~segment.ended
        torch.testing.assert_close(segment.next_values[inside], values[:, 1:][inside], atol=1e-6, rtol=1e-5)
        if not cut:
            assert (segment.next_values[segment.ended] == 0).all()
    row = torch.tensor(
        [[int(segment.observations[1, 3]), 0, 0, 0]]
    )  # an episode from its first to its last observation
    expected = found.policy(row)[0][0, :, -1]
    torch.testing.assert_close(segment.next_values[1, 3:6], expected[1:], atol=1e-6, rtol=1e-5)


def test_the_same_seed_gives_the_same_segment():
    first, second = collector().collect(9), collector().collect(9)
    assert not torch.equal(first.actions[0, :8], first.actions[1, :8])
    torch.manual_seed(0)
    one = collector()
    torch.manual_seed(0)
    two = collector()
    first, second = one.collect(9), two.collect(9)
    assert torch.equal(first.actions, second.actions)
    assert torch.equal(first.observations, second.observations)


def test_a_policy_of_other_ends_is_refused():
    environment = PreviousAction(Echo(symbols=3))
    with pytest.raises(SeriatimError, match="the policy's observations is 12; the environment's is 8"):
        Collector(policy_for(PreviousAction(Echo(symbols=5))), [PreviousAction(Echo(symbols=3))])
    with pytest.raises(SeriatimError, match="environments is empty"):
        Collector(policy_for(environment), [])
    with pytest.raises(SeriatimError, match="steps is 0"):
        Collector(policy_for(environment), [environment]).collect(0)


def test_an_end_and_a_cut_at_the_same_step_are_told_apart():
    environments = [Echo(length=3), Echo(length=3, cut=True)]
    segment = Collector(policy_for(environments[0]), environments).collect(3)
    assert segment.ended[:, 2].all()
    assert segment.next_values[0, 2] == 0
    assert segment.next_values[1, 2] != 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("vector", [False, True])
def test_policies_of_other_dtypes_act(dtype, vector):
    environment = Echo(vector=vector)
    segment = Collector(policy_for(environment).to(dtype), [environment]).collect(5)
    assert segment.values.dtype == segment.log_probs.dtype == segment.next_values.dtype == torch.float32


class Shifted(Echo):
    """Observations and actions are numbers from 5."""

    def __init__(self, **options):
        super().__init__(**options)
        self.action_space.start = self.observation_space.start = 5
        self.said = []

    def step(self, action):
        self.said.append(action)
        return super().step(action - 5)

    def _seen(self, symbol):
        return symbol + 5


@pytest.mark.parametrize("wrapped", [lambda z: z, PreviousAction, RandomProjection])
def test_numbers_that_begin_elsewhere_are_read_and_said_as_they_are(wrapped):
    inner = Shifted(length=3)
    environment = wrapped(inner)
    segment = Collector(policy_for(environment), [environment]).collect(30)
    assert set(inner.said) == {5, 6, 7}
    assert segment.actions.min() == 0
    assert segment.actions.max() == 2
    if environment is inner:
        assert segment.observations.min() == 0
        assert segment.observations.max() <= 3
    if wrapped is PreviousAction:
        told = segment.observations[0, 1:, 4:7][~segment.reset[0, 1:]]
        assert torch.equal(told.argmax(1), segment.actions[0, :-1][~segment.reset[0, 1:]])


def test_a_policy_that_cannot_act_is_refused():
    with pytest.raises(SeriatimError, match="the policy is not causal"):
        Collector(policy_for(Echo(), [{"mixer": "bidirectional", "inner": "gru"}]), [Echo()])


class Reused(Echo):
    """Its observations are all the same array, filled anew."""

    def _seen(self, symbol):
        vars(self).setdefault("array", np.zeros(2))[:] = symbol, self.time
        return self.array


def test_an_observation_may_be_written_over_by_the_next():
    policy = policy_for(Reused(vector=True))
    one, other = (Collector(policy, [kind(vector=True, cut=True, length=2)], seed=1) for kind in (Reused, Echo))
    torch.testing.assert_close(one.collect(6)[:-2], other.collect(6)[:-2])


class Paid(Echo):
    """Every step gives 1."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest


def test_returns_are_of_one_episode_across_segments_and_beside_others():
    environments = [Paid(length=length) for length in (2, 5)]
    found = Collector(policy_for(environments[0]), environments)
    assert found.collect(3).returns.tolist() == [2]
    assert found.collect(7).returns.tolist() == [2, 5, 2, 2, 2, 5]
