"""Small mixers for the tests of the step engine, and what the engine knows of a mixer."""

import torch
from torch import nn

from seriatim.core import stepping
from seriatim.core.mixer import Mixer
from seriatim.core.state import leaves
from seriatim.models.language_model import LanguageModel

__all__ = ["Applied", "engine", "has_program", "programs", "random_input", "same", "small_model", "steps"]


class Applied(Mixer):
    """y, state = function(x, state, module) for one token x (B, dim); the state begins as zeros (B, *shape)."""

    def __init__(self, function, dim=7, shape=None, dtype=torch.float32):
        super().__init__()
        self.function, self.dim, self.shape, self.dtype = function, dim, (dim,) if shape is None else shape, dtype
        self.weight = nn.Parameter(torch.randn(dim, dim))
        self.bias = nn.Parameter(torch.randn(dim))

    def init_state(self, batch):
        return torch.zeros(batch, *self.shape, dtype=self.dtype)

    def mix(self, x, state, reset, lengths):
        y, state = self.function(x[:, 0], state, self)
        return y[:, None], state


def small_model(**options):
    torch.manual_seed(0)
    layers = ["mamba", {"mixer": "gla", "heads": 2}, {"mixer": "lstm", "heads": 2}]
    return LanguageModel(23, 16, layers, **options).eval()


def engine():
    return stepping._engines[0]


def programs(module):
    """The programs of a module; None stands for a step that cannot become one."""
    known = engine()._known.get(module)
    return [] if known is None else [found.program for found in known.programs]


def has_program(module):
    return any(program is not None for program in programs(module))


def random_input(module, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if module.reads_tokens:
        return torch.randint(0, module.vocab_size, (batch,), generator=generator)
    return torch.randn(batch, module.input_dim or module.dim, generator=generator)


@torch.no_grad()
def steps(module, batch, count, state=None):
    """All outputs and states of a run."""
    state = module.init_state(batch) if state is None else state
    found = []
    for t in range(count):
        y, state = module.step(random_input(module, batch, t), state)
        found.append((y, state))
    return found


def same(found, wanted, tolerance=1e-5):
    """Whether two runs agree, relative to the largest number of each tensor."""
    for (y, state), (other, other_state) in zip(found, wanted, strict=True):
        tensors = [y, *(leaf for _, leaf in leaves(state))]
        for a, b in zip(tensors, [other, *(leaf for _, leaf in leaves(other_state))], strict=True):
            assert a.shape == b.shape, (a.shape, b.shape)
            assert a.dtype == b.dtype, (a.dtype, b.dtype)
            finite = b[b.isfinite()]
            scale = finite.double().abs().max().item() if finite.numel() else 0
            torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale, equal_nan=True)
