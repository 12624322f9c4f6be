r"""What an interval of training was worth, and a model that tells it beforehand.

The reward of each objective is, of its losses before and after,

.. math:: R = \mathrm{clip}(100\, r \tanh(r\, S\, \Delta^3), -1, 1), \quad
          \Delta = \frac{L_{old} - L_{new}}{L_{old}}, \quad S = \sqrt{L_{old} L_{new}}

with a sensitivity r, Euler's number: small changes count little, and so does progress where the loss is low. The paper
prints a minus sign before 100; with its Delta that would punish progress, against its text and its official code.

Source: Blouir et al., 2024, arXiv:2411.01030, sections A.1.3 and A.1.5.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from seriatim.core.build import build
from seriatim.core.errors import check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State, take
from seriatim.nn.norms import RMSNorm

__all__ = ["RewardModel", "reward"]

LEAST = 1e-8


def reward(old: Tensor, new: Tensor, sensitivity: float = math.e) -> Tensor:
    """From -1, worse, to 1, better, for each loss. old, new: of the same shape, 0 or more."""
    change = (old - new) / old.clamp(min=LEAST)
    scale = (old * new).sqrt()
    return (100 * sensitivity * torch.tanh(sensitivity * scale * change**3)).clamp(-1, 1)


class RewardModel(nn.Module):
    """Tells the rewards of a mixture from the losses that it meets, and from what happened until then.

    A stack of Gated SSMs (:mod:`seriatim.mixers.state_space.gated_ssm`) reads, for each interval of training, the
    losses at its beginning and the mixture, each behind a norm of its own. Its answers go through a tanh, as in the
    official code.

    Args:
        objectives: how many.
        dim: features of a layer.
        layers: how many.
    """

    def __init__(self, objectives: int, dim: int = 256, layers: int = 4):
        super().__init__()
        check_size(objectives=objectives, dim=dim, layers=layers)
        self.loss_norm, self.action_norm = RMSNorm(objectives), RMSNorm(objectives)
        self.project = nn.Linear(2 * objectives, dim, bias=False)
        layer = {"mixer": "gated_ssm", "state_size": dim}
        self.stack = cast(Mixer, build("stack", dim=dim, layers=[layer] * layers, feed_forward="none"))
        self.out_norm = RMSNorm(dim)
        self.out = nn.Linear(dim, objectives, bias=False)

    def forward(self, losses: Tensor, actions: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """losses and actions (B, T, objectives) to rewards of that shape, each from what came until then."""
        x = self.project(torch.cat([self.loss_norm(losses), self.action_norm(actions)], -1))
        hidden, state = self.stack(x, state)
        return torch.tanh(self.out(self.out_norm(hidden))), state

    @torch.no_grad()
    def candidates(self, losses: Tensor, actions: Tensor, now: Tensor, proposed: Tensor) -> Tensor:
        """The rewards of actions that one could take now, (N, objectives).

        Args:
            losses, actions: (T, objectives), the intervals so far.
            now: (objectives,), the losses at present.
            proposed: (N, objectives).
        """
        _, state = self(losses[None], actions[None])  # the past is the same for all of them: it is read once
        state = take(state, torch.zeros(len(proposed), dtype=torch.long))
        rewards, _ = self(now.expand_as(proposed)[:, None], proposed[:, None], state)
        return cast(Tensor, rewards.squeeze(1))
