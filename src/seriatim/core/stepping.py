"""The place for an engine that does a mixer's step faster than the step itself.

The step that a mixer writes says what one token does. An engine, which a layer above core installs, may record it once
and from then on do the same without PyTorch's calls. It answers only where nobody could tell the difference; where it
does not, the step runs as it is written.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

__all__ = ["Engine", "Step", "before_replay", "install", "is_recording", "is_watched", "recording", "with_engine"]

Step: TypeAlias = Callable[[Any, Any, Any], tuple[Any, Any]]  # (mixer, x, state) -> (y, state)
Engine: TypeAlias = Callable[[Step, Any, Any, Any], tuple[Any, Any] | None]  # (step, mixer, x, state); None: no answer

_engines: list[Engine] = []
_recorders: dict[int, list[Callable[[], object]]] = {}  # of threads that record a step: what comes before a replay


def install(engine: Engine) -> None:
    """Makes `engine` the one that is asked before a step runs."""
    _engines[:] = [engine]


def with_engine(step: Step) -> Step:
    """The step, for which an engine is asked first where no gradient is wanted."""

    @functools.wraps(step)
    def asked(self: Any, x: Any, state: Any) -> tuple[Any, Any]:
        if _engines and not torch.compiler.is_compiling() and not torch.is_grad_enabled() and not is_recording():
            found = _engines[0](step, self, x, state)
            if found is not None:
                return found
        return step(self, x, state)

    return asked


@contextmanager
def recording() -> Iterator[list[Callable[[], object]]]:
    """Inside this block steps of this thread run as they are written, and ops by PyTorch.

    The list holds what is to be called before the recorded step is replayed.
    """
    found = _recorders[threading.get_ident()] = []
    try:
        yield found
    finally:
        _recorders.pop(threading.get_ident(), None)


def is_recording() -> bool:
    """Whether this thread is inside `recording`."""
    return bool(_recorders) and threading.get_ident() in _recorders


def before_replay(call: Callable[[], object]) -> None:
    """While this thread records a step: has `call` called before each time that it is replayed."""
    _recorders[threading.get_ident()].append(call)


def is_watched() -> bool:
    """Whether somebody looks at, or changes, the calls to PyTorch."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._is_any_autocast_enabled()
        or torch.jit.is_tracing()
    )
