import pytest
import torch

import seriatim as sq
from echo import Echo
from seriatim.apps.rl.environment import ends
from seriatim.apps.rl.rollout import Collector
from seriatim.apps.rl.training import PPOSettings, train, update
from seriatim.core.errors import SeriatimError
from seriatim.objectives.ppo import Experience, advantages, ppo

SETTINGS = PPOSettings(steps=24, epochs=4, minibatches=2, learning_rate=1e-2, trace=0.9)


def policy_for(environment, layer="s5"):
    return sq.build("policy", **ends(environment), dim=16, hidden=16, layers=[layer])


@pytest.mark.parametrize("layer", ["s5", "gru"])
def test_what_was_seen_is_remembered(layer):
    torch.manual_seed(0)
    environments = [Echo(symbols=3, length=2) for _ in range(16)]
    training = train(policy_for(environments[0], layer), environments, SETTINGS)
    returns = [next(training).returns.mean().item() for _ in range(20)]
    assert returns[0] < 0.5
    assert max(returns[-3:]) > 0.9


def test_an_update_is_steps_of_adam_on_groups_of_environments_from_the_segments_first_state():
    environments = [Echo(length=length) for length in (2, 3, 5, 7)]
    policy = policy_for(environments[0])
    collector = Collector(policy, environments)
    collector.collect(3)
    segment = collector.collect(6)
    settings = PPOSettings(
        steps=6,
        epochs=2,
        minibatches=2,
        learning_rate=1e-2,
        discount=0.9,
        trace=0.7,
        clip=0.01,
        value_weight=0.3,
        entropy_weight=0.1,
        longest_gradient=0.2,
    )
    twin = sq.build(sq.core.build.spec(policy))
    twin.load_state_dict(policy.state_dict())
    optimiser = torch.optim.Adam(policy.parameters(), 1e-2)
    loss = update(policy, optimiser, segment, settings, torch.Generator().manual_seed(5))

    optimiser, random = torch.optim.Adam(twin.parameters(), 1e-2), torch.Generator().manual_seed(5)
    better = advantages(segment.rewards, segment.values, segment.next_values, segment.ended, 0.9, 0.7)
    totals = []
    for _ in range(2):
        order = torch.randperm(4, generator=random)
        for rows in (order[:2], order[2:]):
            state, answers = sq.state.take(segment.state, rows), []
            for t in range(6):
                fresh = sq.state.where(segment.reset[rows, t], twin.init_state(2), state)
                answer, state = twin.step(segment.observations[rows, t], fresh)
                answers.append(answer)
            answers = torch.stack(answers, 1)
            done = Experience(segment.actions[rows], segment.log_probs[rows], segment.values[rows], better[rows])
            weights = {"clip": 0.01, "value_weight": 0.3, "entropy_weight": 0.1}
            total = ppo(answers[..., :-1], answers[..., -1], done, **weights).total
            optimiser.zero_grad()
            total.backward()
            torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.2)
            optimiser.step()
            totals.append(total.detach())
    torch.testing.assert_close(loss.total, torch.stack(totals).mean(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(dict(twin.named_parameters()), dict(policy.named_parameters()), atol=2e-3, rtol=1e-2)


def test_steps_and_returns_are_counted():
    environments = [Echo(length=4) for _ in range(4)]
    training = train(policy_for(environments[0]), environments, PPOSettings(steps=8, epochs=1, minibatches=2))
    updates = [next(training) for _ in range(3)]
    assert [each.steps for each in updates] == [32, 64, 96]
    assert [len(each.returns) for each in updates] == [8, 8, 8]
    assert all(torch.stack(each.loss).isfinite().all() for each in updates)
    assert all(len(each.seconds) == 2 for each in updates)


def test_settings_that_do_not_fit_are_named():
    environments = [Echo() for _ in range(3)]
    with pytest.raises(SeriatimError, match="there are 3 environments and minibatches is 2"):
        train(policy_for(environments[0]), environments, PPOSettings(minibatches=2))
    with pytest.raises(SeriatimError, match="epochs is 0"):
        PPOSettings(epochs=0)
    with pytest.raises(SeriatimError, match="learning_rate is 0"):
        PPOSettings(learning_rate=0)
    with pytest.raises(SeriatimError, match=r"trace is 1\.5; it must be between 0 and 1"):
        PPOSettings(trace=1.5)
    with pytest.raises(SeriatimError, match="entropy_weight is nan; it must be a finite number"):
        PPOSettings(entropy_weight=float("nan"))


def test_losses_of_layers_are_learned_from_too():
    """The experts' balance is one."""
    found = []
    for balance in (1e-9, 1.0):
        torch.manual_seed(0)
        environments = [Echo(length=length) for length in (2, 3)]
        moe = {"feed_forward": "moe", "experts": 4, "balance": balance}
        policy = sq.build("policy", **ends(environments[0]), dim=8, hidden=8, layers=["gru"], feed_forward=moe)
        next(train(policy, environments, PPOSettings(steps=8, epochs=1, minibatches=1)))
        found.append({name: value.clone() for name, value in policy.named_parameters()})
    assert any(not torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_first_policy_is_nearly_even_and_its_matrices_are_orthogonal():
    policy = sq.build("policy", observations=6, actions=4, dim=8, hidden=12, layers=["gru"])
    logits = policy(torch.randn(2, 5, 6))[0][..., :-1]
    torch.testing.assert_close(logits.softmax(-1), torch.full((2, 5, 4), 0.25), atol=0.05, rtol=0)
    networks = ((policy.encoder, [2, 2]), (policy.actor, [4, 4, 1e-4]), (policy.critic, [4, 4, 1]))
    for network, squares in networks:
        linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
        for layer, square in zip(linear, squares, strict=True):
            weight = layer.weight if layer.weight.size(0) <= layer.weight.size(1) else layer.weight.T
            torch.testing.assert_close(weight @ weight.T, square * torch.eye(len(weight)), atol=1e-5, rtol=1e-5)
            assert not layer.bias.any()
