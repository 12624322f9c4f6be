"""Which steps are done by programs: the engine behind `seriatim.core.stepping`.

A program belongs to a module, to the shapes and dtypes of input and state, and to what its guard says of the module. It
is made at the first such step. A module whose step cannot become a program keeps its own step, and the modules inside
it may have programs of theirs.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from seriatim.core import taps
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.core.stepping import Step, is_watched, recording
from seriatim.kernels.cpu.operator import available
from seriatim.kernels.cpu.step.guards import Guard
from seriatim.kernels.cpu.step.lower import lower
from seriatim.kernels.cpu.step.program import Program
from seriatim.kernels.cpu.step.structure import flatten, rebuild
from seriatim.kernels.cpu.step.trace import Unsupported, record

__all__ = ["StepEngine"]

MOST_ROWS = 16  # of a batch: with more PyTorch's products are the better ones
MOST_PROGRAMS = 8  # kept for a module: one for each batch size, the latest
MOST_RECORDINGS = 64  # of a module: one whose shapes always change is left alone


class _Compiled:
    """A program, what it is for and what comes before it. `program` is None where the step cannot become one."""

    def __init__(
        self, program: Program | None, given: Any, leaves: Sequence[Tensor], structure: Any, before: Sequence[Any]
    ):
        self.program, self.given, self.structure, self.before = program, given, structure, before
        self.shapes, self.dtypes = [z.shape for z in leaves], [z.dtype for z in leaves]


class _Known:
    """What is known of a module: as long as the guard holds, its programs, the latest last."""

    def __init__(self, module: Mixer):
        self.guard, self.programs, self.recordings = Guard(module), list[_Compiled](), 0


class StepEngine:
    """Does steps by programs where `wanted()` is true, which is asked at every step."""

    def __init__(self, wanted: Callable[[], bool]):
        self.wanted = wanted
        self._known: WeakKeyDictionary[Mixer, _Known] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def __call__(self, step: Step, module: Mixer, x: Tensor, state: State) -> tuple[Tensor, State] | None:
        """What step(module, x, state) returns, or None where that is to be run."""
        if not module.constant_state or not self.wanted() or taps.is_collecting() or is_watched():
            return None
        leaves: list[Tensor] = [x]
        try:
            given = flatten(state, leaves)
        except TypeError:
            return None
        known = self._known.get(module)
        if known is None or not known.guard.holds():
            if known is not None and (known.guard.is_hooked() or known.recordings > MOST_RECORDINGS):
                return None
            known = self._get_to_know(module, known)
            if known.guard.is_hooked():
                return None
        found = _matching(known.programs, given, leaves)
        if found is None:
            found = self._compile(known, step, module, given, leaves)
        if found.program is None:
            return None
        for call in found.before:
            call()
        outputs = found.program([z if z.is_contiguous() else z.contiguous() for z in leaves])
        if outputs is None:  # let the step itself say what is wrong with an index
            return None
        rest = iter(outputs)
        return next(rest), rebuild(found.structure, rest)

    def _get_to_know(self, module: Mixer, before: _Known | None) -> _Known:
        with self._lock:
            known = self._known[module] = _Known(module)
            known.recordings = 0 if before is None else before.recordings
        return known

    def _compile(self, known: _Known, step: Step, module: Mixer, given: Any, leaves: Sequence[Tensor]) -> _Compiled:
        """The program for this step from now on."""
        with self._lock:
            found = _matching(known.programs, given, leaves)
            if found is not None:
                return found
            known.recordings += 1
            program, structure, before = None, None, list[Any]()
            if _is_possible(known, module, leaves) and available("step"):
                with suppress(Unsupported):
                    program, structure, before = _compiled(step, module, given, leaves, known.guard)
            found = _Compiled(program, given, leaves, structure, before)
            known.programs[:] = [*known.programs[1 - MOST_PROGRAMS :], found]
            return found


def _matching(programs: Sequence[_Compiled], given: Any, leaves: Sequence[Tensor]) -> _Compiled | None:
    """The program for such an input and state."""
    shapes, dtypes = [z.shape for z in leaves], [z.dtype for z in leaves]
    for found in reversed(programs):
        if found.shapes == shapes and found.dtypes == dtypes and found.given == given:
            return found
    return None


def _is_possible(known: _Known, module: Mixer, leaves: Sequence[Tensor]) -> bool:
    """Whether it is worth recording the step."""
    rows = leaves[0].shape[0] if leaves[0].dim() else 0
    plain = all(type(z) is Tensor and z.device.type == "cpu" and z.layout == torch.strided for z in leaves)
    return plain and 1 <= rows <= MOST_ROWS and known.recordings <= MOST_RECORDINGS


def _compiled(
    step: Step, module: Mixer, given: Any, leaves: Sequence[Tensor], guard: Guard
) -> tuple[Program, Any, list[Any]]:
    """A program that was seen to do what the step does, the structure of its results, and what to call before it."""
    structure: list[Any] = []

    def flat(inputs: Sequence[Tensor]) -> list[Tensor]:
        rest = iter(inputs)
        found: list[Tensor] = []
        y, state = step(module, next(rest), rebuild(given, rest))
        flatten(y, found)
        structure.append(flatten(state, found))
        return found

    with torch.inference_mode(False), torch.no_grad(), recording() as before:
        trace, wanted = record(flat, leaves)
    if not guard.holds():
        raise Unsupported("a step that changes its module")
    program = Program(lower(trace), len(leaves), wanted)
    found = program([z.contiguous() for z in leaves])
    rounds = program.rounds or any(z.dtype == torch.bfloat16 for z in wanted)
    agree = _agree_in_the_mean if rounds else _agree
    if found is None or not all(map(agree, found, wanted)):
        name = type(module).__name__
        warnings.warn(f"the compiled step of {name} differs from the step itself, which runs instead", stacklevel=4)
        raise Unsupported("a program that computes something else")
    return program, structure[0], before


def _agree(found: Tensor, wanted: Tensor) -> bool:
    """Whether two results are the same but for rounding."""
    found, wanted = found.double(), wanted.double()
    scale = wanted[wanted.isfinite()].abs().max().item() if wanted.isfinite().any() else 0.0
    return torch.allclose(found, wanted, rtol=1e-2, atol=1e-2 * scale + 1e-30, equal_nan=True)


def _agree_in_the_mean(found: Tensor, wanted: Tensor) -> bool:
    """The same where activations are rounded, to whole numbers or to bfloat16, and more follow from one that was
    rounded the other way.
    """
    if not wanted.isfinite().all():
        return _agree(found, wanted)
    off = (found.double() - wanted.double()).square().mean().sqrt()
    return bool(off <= 0.1 * wanted.double().square().mean().sqrt() + 1e-30)
