"""An actor and a critic over any stack of mixers."""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seriatim.backbones.stack import Stack
from seriatim.core.build import Spec
from seriatim.core.errors import check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.nn.feed_forward import FeedForward
from seriatim.nn.norms import build_norm

__all__ = ["Policy"]

S5: Spec = {"mixer": "s5", "activation": "full_glu", "c_init": "lecun_normal"}
ROOT2 = math.sqrt(2)
SLOPE = 0.01  # of the leaky units, where they are negative


class Policy(Mixer):
    r"""Says after every observation how good each action looks, and what reward is still to come.

    .. math:: h = \mathrm{norm}(\mathrm{stack}(\phi(W_1 \phi(W_0 x + b_0) + b_1))), \quad
              \mathrm{logits} = \mathrm{actor}(h), \quad v = \mathrm{critic}(h)

    with φ a leaky ReLU, and two layers of it below the last one of actor and critic. It obeys the contract:
    `(x (B, T, observations), state) -> (answers (B, T, actions + 1), state)`, where discrete observations are
    ids (B, T). The last answer is the value v, those before it are the logits of a categorical policy. A reset begins
    an episode.

    Args:
        observations: features of an observation, or how many discrete ones there are.
        actions: number of actions.
        discrete: whether an observation is one id in place of features.
        dim: features of every layer of the stack.
        hidden: units of each layer of the encoder, the actor and the critic.
        layers: a spec for each mixer, such as `["gru", "gru"]`.
        norm: "rms" or "layer".
        feed_forward: "swiglu", "gelu", "moe" or "none", or a list with one for each layer; "moe" also as a mapping with
            options (:class:`seriatim.nn.moe.MixtureOfExperts`).
        expansion: hidden units of a feed-forward layer as a multiple of dim (a gated one has two thirds of it).

    Matrices begin orthogonal, of gain √2 in the encoder, 2 in actor and critic, and 0.01 and 1 in their last layers.

    Source: Lu et al., 2023, arXiv:2303.03982, section 5; sizes and first weights of its official code, whose blocks
        have no norm where these have one.
    """

    def __init__(
        self,
        observations: int,
        actions: int,
        discrete: bool = False,
        dim: int = 256,
        hidden: int = 128,
        layers: Sequence[Spec] = (S5, S5, S5, S5),
        norm: str = "rms",
        feed_forward: FeedForward | Sequence[FeedForward] = "none",
        expansion: float = 4.0,
    ):
        super().__init__()
        check_size(observations=observations, actions=actions, dim=dim, hidden=hidden)
        self.observations, self.actions, self.discrete = observations, actions, discrete
        self.dim, self.hidden, self.norm = dim, hidden, norm
        self.feed_forward, self.expansion = feed_forward, expansion
        self.reads_tokens, self.input_dim, self.vocab_size = discrete, None if discrete else observations, observations
        self.stack = Stack(dim, layers, norm, feed_forward, expansion)
        self.layers = self.stack.layers
        self.causal, self.constant_state = self.stack.causal, self.stack.constant_state
        read = nn.Embedding(observations, hidden) if discrete else nn.Linear(observations, hidden)
        self.encoder = _network(read, nn.Linear(hidden, dim), gains=(ROOT2, ROOT2))
        self.encoder.append(nn.LeakyReLU(SLOPE))
        self.out_norm = build_norm(norm, dim)
        self.actor, self.critic = (
            _network(nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out), gains=(2, 2, gain))
            for out, gain in ((actions, 0.01), (1, 1))
        )

    def init_state(self, batch: int) -> State:
        return self.stack.init_state(batch)

    def mix(self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, State]:
        hidden, state = self.stack(self.encoder(x), state, reset=reset, lengths=lengths)
        return self._answer(hidden), state

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, state = self.stack.step(self.encoder(x), state)
        return self._answer(hidden), state

    def _answer(self, hidden: Tensor) -> Tensor:
        hidden = self.out_norm(hidden)
        return torch.cat([self.actor(hidden), self.critic(hidden)], -1)


def _network(*layers: nn.Linear | nn.Embedding, gains: Sequence[float]) -> nn.Sequential:
    """The layers with leaky units between them, orthogonal and without biases at first."""
    network = nn.Sequential()
    for layer, gain in zip(layers, gains, strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
        network.extend([nn.LeakyReLU(SLOPE), layer] if len(network) else [layer])
    return network


def reference(m: Policy, x: Tensor) -> Tensor:
    """Every layer written out, the stack by its own reference."""
    stack = sys.modules[type(m.stack).__module__]
    hidden = stack.reference(m.stack, _written_out(m.encoder, x))
    hidden = stack._normed(m.stack, m.out_norm, hidden)
    return torch.cat([_written_out(m.actor, hidden), _written_out(m.critic, hidden)], 2)


def _written_out(network: nn.Sequential, x: Tensor) -> Tensor:
    for layer in network:
        if isinstance(layer, nn.Embedding):
            x = layer.weight[x]
        elif isinstance(layer, nn.Linear):
            x = x @ layer.weight.T + layer.bias
        else:
            x = torch.where(x > 0, x, 0.01 * x)
    return x
