import math

import pytest
import torch

from seriatim.core.errors import SeriatimError
from seriatim.objectives.ppo import Experience, advantages, ppo


def lived(batch=3, time=7, actions=4):
    logits = torch.randn(batch, time, actions, dtype=torch.float64)
    values = torch.randn(batch, time, dtype=torch.float64)
    old = torch.randn(batch, time, actions, dtype=torch.float64).log_softmax(-1)
    chosen = torch.randint(actions, (batch, time))
    log_probs = old.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    better = torch.randn(batch, time, dtype=torch.float64)
    return logits, values, Experience(chosen, log_probs, values + torch.randn_like(values), better)


def test_advantages_are_the_discounted_sum_of_surprises_within_the_episode():
    rewards, values, next_values = torch.randn(3, 2, 9, dtype=torch.float64)
    ended = torch.rand(2, 9) < 0.3
    found = advantages(rewards, values, next_values, ended, 0.9, 0.7)
    for b in range(2):
        for t in range(9):
            total, weight = 0.0, 1.0
            for later in range(t, 9):
                surprise = rewards[b, later] + 0.9 * next_values[b, later] - values[b, later]
                total, weight = total + weight * surprise, weight * 0.9 * 0.7
                if ended[b, later]:
                    break
            assert found[b, t].item() == pytest.approx(total.item(), rel=1e-9)


def test_without_a_trace_only_the_next_value_is_asked_and_with_it_all_rewards():
    rewards = torch.tensor([[1.0, 0.0, 2.0, 5.0]])
    values, next_values = torch.tensor([[0.5, 0.25, 1.0, 3.0]]), torch.tensor([[0.25, 1.0, 0.0, 4.0]])
    ended = torch.tensor([[False, False, True, False]])
    one = advantages(rewards, values, next_values, ended, 0.5, 0.0)
    assert one.tolist() == [[0.625, 0.25, 1.0, 4.0]]
    all_of_them = advantages(rewards, values, next_values, ended, 0.5, 1.0)
    assert all_of_them.tolist() == [[1 + 0.5 * 0 + 0.25 * 2 - 0.5, 0 + 0.5 * 2 - 0.25, 2 - 1.0, 5 + 0.5 * 4 - 3.0]]


def test_advantages_of_no_steps():
    empty = torch.zeros(2, 0)
    assert advantages(empty, empty, empty, empty.bool()).shape == (2, 0)


def test_the_loss_is_the_sum_over_what_was_done():
    logits, values, done = lived()
    mean = done.advantages.mean()
    deviation = (done.advantages - mean).square().mean().sqrt()
    policy, value, entropy, clipped = [], [], [], 0
    for b in range(3):
        for t in range(7):
            p = logits[b, t].softmax(0)
            ratio = (p[done.actions[b, t]].log() - done.log_probs[b, t]).exp()
            near = min(max(ratio, 0.7), 1.3)
            better = (done.advantages[b, t] - mean) / deviation
            policy.append(-min(ratio * better, near * better))
            clipped += int(near != ratio)
            old, new = done.values[b, t], values[b, t]
            target = done.advantages[b, t] + old
            step = min(max(new - old, -0.3), 0.3)
            value.append(max((new - target) ** 2, (old + step - target) ** 2) / 2)
            entropy.append(-(p * p.log()).sum())
    assert 0 < clipped < 21
    loss = ppo(logits, values, done, clip=0.3, value_weight=0.5, entropy_weight=0.1)
    expected = [sum(part) / 21 for part in (policy, value, entropy)]
    torch.testing.assert_close(torch.stack(loss[1:]), torch.stack(expected))
    torch.testing.assert_close(loss.total, expected[0] + 0.5 * expected[1] - 0.1 * expected[2])


def test_at_the_policy_that_acted_the_gradient_is_that_of_plain_policy_gradients():
    logits, values, done = lived()
    logits.requires_grad_()
    log_probs = logits.log_softmax(-1).gather(-1, done.actions.unsqueeze(-1)).squeeze(-1)
    better = (done.advantages - done.advantages.mean()) / done.advantages.std(correction=0)
    (plain,) = torch.autograd.grad(-(log_probs * better).mean(), logits, retain_graph=True)
    loss = ppo(logits, values, done._replace(log_probs=log_probs.detach()))
    (found,) = torch.autograd.grad(loss.policy, logits)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize(
    ("better", "log_ratio", "moves"), [(1, 1, False), (1, -1, True), (-1, 1, True), (-1, -1, False)]
)
def test_what_went_far_enough_is_pushed_no_further(better, log_ratio, moves):
    logits = torch.zeros(1, 2, 2, requires_grad=True)
    log_probs = torch.tensor([[-math.log(2) - log_ratio, -math.log(2)]])  # the second action is as likely as before
    done = Experience(
        torch.zeros(1, 2, dtype=torch.int64), log_probs, torch.zeros(1, 2), torch.tensor([[better, -better]])
    )
    done = done._replace(advantages=done.advantages.float())
    (gradient,) = torch.autograd.grad(ppo(logits, torch.zeros(1, 2), done).policy, logits)
    assert bool(gradient[0, 0].any()) is moves
    assert gradient[0, 1].any()


def test_entropy_is_that_of_the_categorical_distribution():
    logits, values, done = lived()
    expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(ppo(logits, values, done).entropy, expected)


def test_bad_options_are_named():
    logits, values, done = lived()
    with pytest.raises(SeriatimError, match="clip is 0; it must be a finite number above 0"):
        ppo(logits, values, done, clip=0)
    with pytest.raises(SeriatimError, match=r"trace is 1\.5; it must be between 0 and 1"):
        advantages(values, values, values, values > 0, trace=1.5)
