r"""Proximal policy optimisation: act so that more reward comes, but not far from how it was just acted.

Source: Schulman et al., 2017, arXiv:1707.06347, equations 7 and 9; advantages: Schulman et al., 2015, arXiv:1506.02438,
equation 16.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from seriatim.core.errors import SeriatimError, check_positive

__all__ = ["Experience", "PPOLoss", "advantages", "check_discounts", "ppo"]


class Experience(NamedTuple):
    """What was done and how it looked then, each (B, T)."""

    actions: Tensor  # int64
    log_probs: Tensor  # of those actions, when they were chosen
    values: Tensor  # the critic's, when they were chosen
    advantages: Tensor


class PPOLoss(NamedTuple):
    """The loss and its parts, scalars: total = policy + value_weight value - entropy_weight entropy."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor  # of the policy, in nats, a mean over the observations


def advantages(
    rewards: Tensor, values: Tensor, next_values: Tensor, ended: Tensor, discount: float = 0.99, trace: float = 1.0
) -> Tensor:
    r"""How much better each action turned out than the critic thought: generalised advantage estimation.

    .. math:: \delta_t = r_t + \gamma v'_t - v_t, \quad A_t = \delta_t + \gamma \lambda (1 - e_t) A_{t+1}

    Args:
        rewards: r (B, T), for the action at t.
        values: v (B, T), the critic's at the observation that the action answered.
        next_values: v' (B, T), the critic's at the observation that it led to: 0 where the episode came to its end,
            but not where it was only cut off.
        ended: e (B, T) bool, whether the episode ended with this action, in either way.
        discount: γ, from 0 to 1.
        trace: λ, from 0 (only the next value is asked) to 1 (all rewards count that came).
    """
    check_discounts(discount, trace)
    surprise = rewards + discount * next_values - values
    goes_on = discount * trace * (~ended).to(surprise.dtype)
    found, later = [], surprise.new_zeros(surprise.size(0))
    for now, weight in zip(surprise.unbind(1)[::-1], goes_on.unbind(1)[::-1], strict=True):
        later = now + weight * later
        found.append(later)
    return torch.stack(found[::-1], 1) if found else surprise


def check_discounts(discount: float, trace: float) -> None:
    """Raises SeriatimError unless γ and λ are between 0 and 1."""
    for name, value in (("discount", discount), ("trace", trace)):
        if not 0 <= value <= 1:
            raise SeriatimError(f"{name} is {value}; it must be between 0 and 1")


def ppo(
    logits: Tensor,
    values: Tensor,
    experience: Experience,
    *,
    clip: float = 0.2,
    value_weight: float = 1.0,
    entropy_weight: float = 0.0,
) -> PPOLoss:
    r"""The clipped surrogate loss, a value loss clipped likewise, and a reward for undecidedness.

    .. math:: \rho = \frac{\pi(a)}{\pi_{old}(a)}, \quad L_\pi = -\mathrm{E} \min(\rho \hat A,
              \mathrm{clip}(\rho, 1 - \epsilon, 1 + \epsilon) \hat A)

    .. math:: L_v = \tfrac12 \mathrm{E} \max((v - R)^2, (v_{old} + \mathrm{clip}(v - v_{old}, -\epsilon, \epsilon) -
              R)^2), \quad R = A + v_{old}

    .. math:: L = L_\pi + c_v L_v - c_H \mathrm{E}\, H(\pi)

    The advantages are brought to mean 0 and deviation 1 first: :math:`\hat A`.

    Args:
        logits: (B, T, actions), of the policy as it is now.
        values: v (B, T), the critic's now.
        experience: what was done.
        clip: ε.
        value_weight, entropy_weight: c_v and c_H.
    """
    check_positive(clip=clip)
    log_policy = logits.log_softmax(-1)
    ratio = (log_policy.gather(-1, experience.actions.unsqueeze(-1)).squeeze(-1) - experience.log_probs).exp()
    better = experience.advantages
    better = (better - better.mean()) / (better.std(correction=0) + 1e-8)
    policy = -torch.minimum(ratio * better, ratio.clamp(1 - clip, 1 + clip) * better).mean()
    target = experience.advantages + experience.values
    near = experience.values + (values - experience.values).clamp(-clip, clip)
    value = torch.maximum((values - target).square(), (near - target).square()).mean() / 2
    entropy = -(log_policy.exp() * log_policy).sum(-1).mean()
    return PPOLoss(policy + value_weight * value - entropy_weight * entropy, policy, value, entropy)
