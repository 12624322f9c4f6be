"""LMUFormer of spiking neurons."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from seriatim.backbones.lmuformer import convolved, normalised
from seriatim.core import ragged
from seriatim.core.errors import check_size
from seriatim.core.mixer import Mixer
from seriatim.nn.batch_norm import BatchNorm
from seriatim.nn.causal_conv import CausalConv
from seriatim.nn.legendre_memory import LegendreMemory
from seriatim.nn.lif import LIF

__all__ = ["SpikingLMUFormer"]

DEVIATION = 0.02  # of the first weights in a Legendre memory unit
SENSITIVE = 0.5  # the threshold of the neurons before it

Fire = Callable[[nn.Module, Tensor], Tensor]


class SpikingState(NamedTuple):
    """What is carried from segment to segment."""

    tails: tuple[Tensor, ...]  # of each convolution, (B, conv_size - 1, dim)
    memories: tuple[Tensor, ...]  # of each layer, (B, 1, order)
    membranes: tuple[Tensor, ...]  # of each layer of neurons, in the order in which they fire


class SpikingLMUFormer(Mixer):
    r"""LMUFormer whose layers speak in spikes: N is batch norm, then leaky integrate-and-fire neurons.

    .. math:: x \leftarrow N(\mathrm{conv}(x)) \;\text{(convs - 1 times)}, \quad x \leftarrow \mathrm{conv}(x), \quad
              x \leftarrow x + \mathrm{conv}(N(x))

    and then, `layers` times,

    .. math:: s = N_{1/2}(x), \quad u_t = N(W_u s_t), \quad m_t = A m_{t-1} + B u_t, \quad
              h = N(W_m N(m) + W_x s), \quad x \leftarrow x + \mathrm{BN}(W_p h)

    .. math:: x \leftarrow x + W_2 N(W_1 N(x))

    and N(x) at the end: every weight but the last of the embedding multiplies zeros and ones, and the output is such.
    Tokens are the neurons' time steps. A spike's gradient is that of a sigmoid (:func:`seriatim.ops.lif_scan`). As in
    `lmuformer` the convolutions look back only.

    Args:
        dim: features in and out.
        layers: blocks of memory and channel mixer.
        order: numbers that remember each layer's signal; None is 2 dim.
        window: tokens that they remember.
        convs: convolutions of the embedding, before the one that tells of positions.
        conv_size: taps of each.
        expansion: hidden features of a channel mixer, as a multiple of dim.

    Source: Liu, Datta, Li and Beerel, 2024, arXiv:2402.04882, section 4; the places of the neurons, sizes, thresholds
        and initialisation are those of its official code's model of membrane shortcuts.
    """

    def __init__(
        self,
        dim: int,
        layers: int = 1,
        order: int | None = None,
        window: float = 128.0,
        convs: int = 4,
        conv_size: int = 3,
        expansion: int = 4,
    ):
        super().__init__()
        size = 2 * dim if order is None else order
        check_size(dim=dim, layers=layers, order=size, convs=convs, expansion=expansion)
        self.dim, self.layers, self.order, self.window = dim, layers, order, window
        self.convs, self.conv_size, self.expansion = convs, conv_size, expansion
        self.embed = nn.ModuleList(CausalConv(dim, dim, conv_size) for _ in range(convs))
        self.embed_neurons = nn.ModuleList(_Neurons(dim) for _ in range(convs))
        self.positions = CausalConv(dim, dim, conv_size)
        self.blocks = nn.ModuleList(_Block(dim, size, window, expansion) for _ in range(layers))
        self.neurons = _Neurons(dim)

    def init_state(self, batch: int) -> SpikingState:
        tails = [self.new_state(batch, self.conv_size - 1, self.dim) for _ in range(self.convs + 1)]
        blocks = cast(list[_Block], self.blocks)
        memories = [self.new_state(batch, 1, block.memory.order) for block in blocks]
        layers = [*self.embed_neurons, *(neurons for block in blocks for neurons in block.neurons()), self.neurons]
        membranes = [self.new_state(batch, cast(_Neurons, neurons).dim) for neurons in layers]
        return SpikingState(tuple(tails), tuple(memories), tuple(membranes))

    def mix(
        self, x: Tensor, state: SpikingState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, SpikingState]:
        real = None if lengths is None else ragged.real_tokens(lengths, x.size(1))
        given, membranes, tails, memories = iter(state.membranes), [], [], []

        def fire(neurons: nn.Module, z: Tensor) -> Tensor:
            spikes, membrane = neurons(z, next(given), reset, lengths, real)
            membranes.append(membrane)
            return spikes

        for index, (conv, tail) in enumerate(zip([*self.embed, self.positions], state.tails, strict=True)):
            spikes = x if index == 0 else fire(self.embed_neurons[index - 1], x)
            z, tail = conv(spikes, tail, reset, lengths)
            x = x + z if index == self.convs else z
            tails.append(tail)
        for block, memory in zip(self.blocks, state.memories, strict=True):
            x, memory = block(x, memory, fire, reset, lengths, real)
            memories.append(memory)
        return fire(self.neurons, x), SpikingState(tuple(tails), tuple(memories), tuple(membranes))


class _Neurons(nn.Module):
    """Batch norm, then neurons."""

    def __init__(self, dim: int, threshold: float = 1.0):
        super().__init__()
        self.dim, self.norm, self.lif = dim, BatchNorm(dim), LIF(threshold)

    def forward(
        self, x: Tensor, state: Tensor, reset: Tensor | None, lengths: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.lif(self.norm(x, real), state, reset, lengths)


class _Block(nn.Module):
    def __init__(self, dim: int, order: int, window: float, expansion: int):
        super().__init__()
        self.begin, self.signal_neurons = _Neurons(dim, SENSITIVE), _Neurons(1)
        self.memory_neurons, self.out_neurons = _Neurons(order), _Neurons(dim)
        self.up_neurons, self.down_neurons = _Neurons(dim), _Neurons(expansion * dim)
        self.signal, self.memory = nn.Linear(dim, 1), LegendreMemory(order, window)
        self.read = nn.Linear(order + dim, dim)
        for layer in (self.signal, self.read):
            nn.init.trunc_normal_(layer.weight, std=DEVIATION)
            nn.init.zeros_(layer.bias)
        self.out, self.out_norm = nn.Linear(dim, dim), BatchNorm(dim)
        self.up, self.down = nn.Linear(dim, expansion * dim), nn.Linear(expansion * dim, dim)

    def neurons(self) -> list[_Neurons]:
        """In the order in which they fire."""
        memory = [self.begin, self.signal_neurons, self.memory_neurons, self.out_neurons]
        return [*memory, self.up_neurons, self.down_neurons]

    def forward(
        self, x: Tensor, state: Tensor, fire: Fire, reset: Tensor | None, lengths: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        s = fire(self.begin, x)
        u = fire(self.signal_neurons, self.signal(s))
        m, state = self.memory(u, state, reset, lengths)
        h = fire(self.out_neurons, self.read(torch.cat([fire(self.memory_neurons, m.squeeze(2)), s], 2)))
        x = x + self.out_norm(self.out(h), real)
        return x + self.down(fire(self.down_neurons, self.up(fire(self.up_neurons, x)))), state


def reference(m: SpikingLMUFormer, x: Tensor) -> Tensor:
    """The paper's equations in evaluation, one sequence, token and layer of neurons at a time."""
    rows, blocks = [], cast(list[_Block], m.blocks)
    for sequence in x:
        queues = [[x.new_zeros(m.dim)] * m.conv_size for _ in range(m.convs + 1)]
        memories = [x.new_zeros(block.memory.order) for block in blocks]
        membranes: dict[Any, Tensor] = {}
        out = []
        for token in sequence:
            z = token
            for k, conv in enumerate(m.embed):
                z = convolved(conv, queues[k], z)
                if k < m.convs - 1:
                    z = _spikes(m.embed_neurons[k], membranes, z)
            z = z + convolved(m.positions, queues[-1], _spikes(m.embed_neurons[-1], membranes, z))
            for k, block in enumerate(blocks):
                s = _spikes(block.begin, membranes, z)
                u = _spikes(block.signal_neurons, membranes, block.signal.weight @ s + block.signal.bias)
                A, B = block.memory.matrices(x.dtype)
                memories[k] = A @ memories[k] + B * u
                w_m, w_x = block.read.weight.split([len(B), m.dim], 1)
                h = w_m @ _spikes(block.memory_neurons, membranes, memories[k]) + w_x @ s + block.read.bias
                h = _spikes(block.out_neurons, membranes, h)
                z = z + normalised(block.out_norm, block.out.weight @ h + block.out.bias)
                f = block.up.weight @ _spikes(block.up_neurons, membranes, z) + block.up.bias
                z = z + block.down.weight @ _spikes(block.down_neurons, membranes, f) + block.down.bias
            out.append(_spikes(m.neurons, membranes, z))
        rows.append(torch.stack(out))
    return torch.stack(rows)


def _spikes(neurons: Any, membranes: dict[Any, Tensor], z: Tensor) -> Tensor:
    before = membranes.get(neurons, torch.zeros_like(z))
    v = before + (normalised(neurons.norm, z) - before) / 2
    fires = v >= neurons.lif.threshold
    membranes[neurons] = v * ~fires
    return fires.to(z.dtype)
