"""LMUFormer."""

import math
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.core import ragged
from seriatim.core.errors import check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.mixers.state_space.lmu import LMU
from seriatim.nn.batch_norm import BatchNorm
from seriatim.nn.causal_conv import CausalConv

__all__ = ["LMUFormer", "convolved", "normalised"]

DEVIATION = 0.02  # of the first weights in a Legendre memory unit


class LMUFormerState(NamedTuple):
    """What is carried from segment to segment."""

    tails: tuple[Tensor, ...]  # of each convolution, (B, conv_size - 1, dim)
    memories: tuple[State, ...]  # of each layer's LMU, (B, 1, order)


class LMUFormer(Mixer):
    r"""A recurrent model built like a transformer: an embedding by convolutions, Legendre memories, channel mixers.

    .. math:: x \leftarrow \mathrm{BN}(\mathrm{relu}(\mathrm{conv}(x))) \;\text{(convs times)}, \quad
              x \leftarrow x + \mathrm{conv}(x)

    and then, `layers` times,

    .. math:: x \leftarrow x + \mathrm{BN}(W_p\, \mathrm{LMU}(x)), \quad
              x \leftarrow x + \mathrm{relu}(\mathrm{BN}(W_2\, \mathrm{gelu}(\mathrm{BN}(W_1 x))))

    The convolutions look back only, where the official ones look a token ahead each: the same features, a token a
    convolution later. In training, batch norm makes tokens of a batch depend on each other (:class:`BatchNorm`).

    Args:
        dim: features in and out.
        layers: blocks of memory and channel mixer.
        order: numbers that remember each layer's signal; None is dim.
        window: tokens that they remember.
        convs: convolutions of the embedding, before the one that tells of positions.
        conv_size: taps of each.
        expansion: hidden features of a channel mixer, as a multiple of dim.

    Source: Liu, Datta, Li and Beerel, 2024, arXiv:2402.04882, section 4, with the sizes and the initialisation of its
        official code.
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
        check_size(dim=dim, layers=layers, convs=convs, expansion=expansion)
        self.dim, self.layers, self.order, self.window = dim, layers, order, window
        self.convs, self.conv_size, self.expansion = convs, conv_size, expansion
        self.embed = nn.ModuleList(CausalConv(dim, dim, conv_size) for _ in range(convs))
        self.embed_norms = nn.ModuleList(BatchNorm(dim) for _ in range(convs))
        self.positions = CausalConv(dim, dim, conv_size)
        self.blocks = nn.ModuleList(_Block(dim, order, window, expansion) for _ in range(layers))

    def init_state(self, batch: int) -> LMUFormerState:
        tails = tuple(self.new_state(batch, self.conv_size - 1, self.dim) for _ in range(self.convs + 1))
        return LMUFormerState(tails, tuple(block.lmu.init_state(batch) for block in cast(list[_Block], self.blocks)))

    def mix(
        self, x: Tensor, state: LMUFormerState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, LMUFormerState]:
        real = None if lengths is None else ragged.real_tokens(lengths, x.size(1))
        tails, memories = [], []
        for conv, norm, tail in zip(self.embed, self.embed_norms, state.tails[:-1], strict=True):
            x, tail = conv(x, tail, reset, lengths)
            x = norm(torch.relu(x), real)
            tails.append(tail)
        place, tail = self.positions(x, state.tails[-1], reset, lengths)
        x = x + place
        for block, memory in zip(self.blocks, state.memories, strict=True):
            x, memory = block(x, memory, reset, lengths, real)
            memories.append(memory)
        return x, LMUFormerState((*tails, tail), tuple(memories))


class _Block(nn.Module):
    def __init__(self, dim: int, order: int | None, window: float, expansion: int):
        super().__init__()
        self.lmu = LMU(dim, order, window)
        for layer in (self.lmu.signal, self.lmu.memory, self.lmu.input):
            nn.init.trunc_normal_(layer.weight, std=DEVIATION)
        self.lmu_out, self.lmu_norm = nn.Linear(dim, dim), BatchNorm(dim)
        self.up, self.up_norm = nn.Linear(dim, expansion * dim), BatchNorm(expansion * dim)
        self.down, self.down_norm = nn.Linear(expansion * dim, dim), BatchNorm(dim)

    def forward(
        self, x: Tensor, state: State, reset: Tensor | None, lengths: Tensor | None, real: Tensor | None
    ) -> tuple[Tensor, State]:
        y, state = self.lmu(x, state, reset=reset, lengths=lengths)
        x = x + self.lmu_norm(self.lmu_out(y), real)
        hidden = F.gelu(self.up_norm(self.up(x), real))
        return x + torch.relu(self.down_norm(self.down(hidden), real)), state


def reference(m: LMUFormer, x: Tensor) -> Tensor:
    """The paper's equations in evaluation, one sequence and token at a time."""
    rows, blocks = [], cast(list[_Block], m.blocks)
    for sequence in x:
        queues = [[x.new_zeros(m.dim)] * m.conv_size for _ in range(m.convs + 1)]
        memories = [x.new_zeros(block.lmu.state_shape[1]) for block in blocks]
        out = []
        for token in sequence:
            z = token
            for k, (conv, norm) in enumerate(zip(m.embed, m.embed_norms, strict=True)):
                z = normalised(norm, torch.relu(convolved(conv, queues[k], z)))
            z = z + convolved(m.positions, queues[-1], z)
            for k, block in enumerate(blocks):
                lmu = block.lmu
                A, B = lmu.delay.matrices(x.dtype)
                u = torch.relu(lmu.signal.weight[0] @ z + lmu.signal.bias)
                memories[k] = A @ memories[k] + B * u
                h = torch.relu(lmu.memory.weight @ memories[k] + lmu.input.weight @ z + lmu.input.bias)
                z = z + normalised(block.lmu_norm, block.lmu_out.weight @ h + block.lmu_out.bias)
                f = normalised(block.up_norm, block.up.weight @ z + block.up.bias)
                f = f * 0.5 * (1 + torch.erf(f / math.sqrt(2)))
                z = z + torch.relu(normalised(block.down_norm, block.down.weight @ f + block.down.bias))
            out.append(z)
        rows.append(torch.stack(out))
    return torch.stack(rows)


def convolved(conv: Any, queue: list[Tensor], z: Tensor) -> Tensor:
    """For a reference: what a convolution makes of the last tokens, z the newest, which joins them."""
    queue.append(z)
    del queue[0]
    return sum((conv.weight[:, :, i] @ queue[i] for i in range(len(queue))), torch.zeros_like(z))


def normalised(norm: Any, z: Tensor) -> Tensor:
    """For a reference: batch norm in evaluation."""
    return norm.weight * (z - norm.mean) / torch.sqrt(norm.variance + norm.epsilon) + norm.bias
