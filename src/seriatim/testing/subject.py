"""The mixer under test: a float64 copy with every parameter moved a little, inputs for it, and ways of reading them.

Dimensions: B batch, T time.
"""

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, cast

import torch
from torch import Tensor

from seriatim.core.mixer import Mixer
from seriatim.core.state import State, leaves, map_state

__all__ = ["CAUSAL", "FEATURES", "NON_CAUSAL", "STATE", "Check", "Need", "Reference", "Subject", "check"]

Reference = Callable[[Mixer, Tensor], Tensor]
CONTINUATION = 7  # tokens read from a state to see what it does next
PREFIX = 11  # tokens read to make a carried state


class Subject:
    """A mixer under test. The one that was given is copied and left as it is.

    Attributes:
        given: the mixer as it was given.
        mixer: a float64 copy in evaluation mode. Noise of relative size `jitter` is added to its parameters, so that
            one that begins at zero cannot hide what it does.
        reference: the literal equations, or None.
    """

    def __init__(self, given: Mixer, reference: Reference | None = None, jitter: float = 0.1):
        self.given = given
        self.reference = reference
        self.dtype = torch.float64
        self.mixer = self.copy(torch.float64)
        _jitter(self.mixer, jitter)

    def copy(self, dtype: torch.dtype) -> Mixer:
        """A copy with the given parameters in `dtype` (complex ones in its complex partner), in evaluation mode."""
        return _in_dtype(deepcopy(self.given).eval(), dtype)

    def single(self) -> "Subject":
        """The same subject, its mixer with the same parameters in float32."""
        subject = copy(self)
        subject.dtype, subject.mixer = torch.float32, _in_dtype(deepcopy(self.mixer), torch.float32)
        return subject

    def input(self, batch: int, time: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        """Random features (B, T, dim), or for a model token ids (B, T) or features (B, T, channels)."""
        generator = torch.Generator().manual_seed(seed)
        if self.mixer.reads_tokens:
            vocab_size = cast(Any, self.mixer).vocab_size
            return torch.randint(vocab_size, (batch, time), generator=generator).to(self.device)
        x = torch.randn(batch, time, self.mixer.input_dim or self.mixer.dim, generator=generator, dtype=torch.float64)
        return x.to(self.device, dtype or self.dtype)

    def live_input(self, batch: int, time: int, seed: int = 0) -> Tensor:
        """The same, asking for a gradient where the input has one."""
        x = self.input(batch, time, seed)
        return x.requires_grad_() if x.is_floating_point() else x

    def carried(self, batch: int = 3, seed: int = 1) -> State:
        """A state that has read something."""
        with torch.no_grad():
            return self.mixer(self.input(batch, PREFIX, seed))[1]

    def live(self, state: State) -> State:
        """The state as fresh leaves that ask for a gradient."""

        def fresh(leaf: Tensor) -> Tensor:
            leaf = leaf.detach().clone()
            return leaf.requires_grad_() if leaf.is_floating_point() or leaf.is_complex() else leaf

        return map_state(fresh, state)

    def chunks(
        self, x: Tensor, cuts: Sequence[int], state: State | None, reset: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Reads x in pieces of the given lengths."""
        outputs, start = [], 0
        for size in cuts:
            part = slice(start, start + size)
            y, state = self.mixer(x[:, part], state, reset=None if reset is None else reset[:, part])
            outputs.append(y)
            start += size
        return torch.cat(outputs, 1), state

    def steps(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Reads x one token at a time."""
        outputs = []
        for token in x.unbind(1):
            y, state = self.mixer.step(token, state)
            outputs.append(y)
        return torch.stack(outputs, 1), state

    def after(self, state: State, batch: int) -> Tensor:
        """What the state does next: the outputs on a fixed continuation, the same tokens for every row."""
        x = self.input(1, CONTINUATION, seed=2)
        return self.mixer(x.expand(batch, *x.shape[1:]), state)[0]

    def gradients(self, outputs: Sequence[Tensor], x: Tensor | None = None, state: State = ()) -> dict[str, Tensor]:
        """Gradients of a fixed random sum of the outputs: of the input x, the leaves of `state`, every parameter."""
        loss = sum((self._weigh(y, seed) for seed, y in enumerate(outputs)), torch.zeros((), device=self.device))
        wanted = {"x": x} if x is not None and x.requires_grad else {}
        wanted |= {f"state {name}": leaf for name, leaf in leaves(state) if leaf.requires_grad}
        wanted |= {f"parameter {name}": p for name, p in self.mixer.named_parameters() if p.requires_grad}
        if not loss.requires_grad:
            return {name: torch.zeros_like(tensor) for name, tensor in wanted.items()}
        found = torch.autograd.grad(
            loss, list(wanted.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return dict(zip(wanted, found, strict=True))

    @property
    def device(self) -> torch.device:
        return next((parameter.device for parameter in self.mixer.parameters()), torch.device("cpu"))

    def _weigh(self, y: Tensor, seed: int) -> Tensor:
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
        return (y * weights.to(y.device, y.dtype)).sum()


@dataclass(frozen=True)
class Need:
    """What a mixer must be for a check to say something about it."""

    met: Callable[[Subject], bool]
    otherwise: str


CAUSAL = Need(lambda subject: subject.mixer.causal, "the mixer is not causal")
NON_CAUSAL = Need(lambda subject: not subject.mixer.causal, "the mixer is causal")
FEATURES = Need(lambda subject: not subject.mixer.reads_tokens, "the mixer reads tokens, which have no gradient")
STATE = Need(lambda subject: any(leaves(subject.mixer.init_state(1))), "the mixer carries no state")


class Check:
    """One property under one name. Calling it raises ConformanceError, or the mixer's own error, if it fails."""

    def __init__(self, run: Callable[[Subject], None], needs: Sequence[Need]):
        update_wrapper(self, run)
        self.name = run.__name__
        self.summary = (run.__doc__ or "").strip().splitlines()[0]
        self._run = run
        self._needs = needs

    def __call__(self, subject: Subject) -> None:
        self._run(subject)

    def why_not(self, subject: Subject) -> str | None:
        """Why the check says nothing about this mixer; None where it does."""
        return next((need.otherwise for need in self._needs if not need.met(subject)), None)


def check(*needs: Need) -> Callable[[Callable[[Subject], None]], Check]:
    """Makes a function of a subject a check."""
    return lambda run: Check(run, needs)


def _in_dtype(mixer: Mixer, dtype: torch.dtype) -> Mixer:
    mixer = {torch.float64: mixer.double, torch.float32: mixer.float, torch.bfloat16: mixer.bfloat16}[dtype]()
    for tensor in [*mixer.parameters(), *mixer.buffers()]:
        if tensor.is_complex():
            tensor.data = tensor.data.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return mixer


def _jitter(mixer: Mixer, size: float) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in mixer.parameters():
            if parameter.numel() == 0 or not (parameter.is_floating_point() or parameter.is_complex()):
                continue
            scale = size * (float(parameter.abs().square().mean().sqrt()) + 0.2)
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(scale * noise.to(parameter.device))
