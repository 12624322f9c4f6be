"""The mixer computes what it says, in the shapes and dtypes that the contract states."""

import torch
from torch import Tensor

from seriatim.core.mixer import state_dtype
from seriatim.core.state import leaves
from seriatim.testing.report import expect, expect_close
from seriatim.testing.subject import CAUSAL, NON_CAUSAL, Subject, check

__all__ = ["carries_nothing", "dtypes", "equals_reference", "layout", "step_layout"]

BATCH = 3


@check()
def layout(subject: Subject) -> None:
    """forward returns (outputs, state): an output for each token, and a state whose every leaf is batch first."""
    x = subject.input(BATCH, 5)
    result = subject.mixer(x)
    pair = isinstance(result, tuple) and len(result) == 2
    expect(pair, f"forward returned {type(result).__name__}, not (outputs, state)")
    y, state = result
    _check_outputs(subject, y, (BATCH, 5), "outputs")
    start = subject.mixer.init_state(BATCH)
    for when, each in (("init_state(3)", start), ("the state after 5 tokens of 3 rows", state)):
        for name, leaf in leaves(each):
            batch_first = leaf.dim() > 0 and leaf.size(0) == BATCH
            expect(batch_first, f"{when}: leaf {name} has shape {tuple(leaf.shape)}, not (3, ...)")
    ours, theirs = ([(name, leaf.dtype) for name, leaf in leaves(each)] for each in (start, state))
    expect(ours == theirs, f"init_state has leaves {ours}; the state after 5 tokens has {theirs}")
    expect(type(start) is type(state), f"init_state makes {type(start).__name__}, forward {type(state).__name__}")


@check(CAUSAL)
def step_layout(subject: Subject) -> None:
    """step takes one token a row and returns one output a row and a state of the same structure."""
    start = subject.mixer.init_state(BATCH)
    y, state = subject.mixer.step(subject.input(BATCH, 1)[:, 0], start)
    _check_outputs(subject, y, (BATCH,), "outputs of step")
    ours, theirs = ([(name, leaf.dtype) for name, leaf in leaves(each)] for each in (start, state))
    expect(ours == theirs, f"init_state has leaves {ours}; the state after a step has {theirs}")


@check()
def dtypes(subject: Subject) -> None:
    """Outputs have the input's dtype; floating leaves of a state the parameters', or float32 where that is half."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        mixer, x = subject.copy(dtype), subject.input(2, 5, dtype=dtype)
        y, state = mixer(x)
        if not mixer.reads_tokens:
            expect(y.dtype == dtype, f"with parameters and input in {dtype}, outputs are {y.dtype}")
        for when, each in (("init_state", mixer.init_state(2)), ("the state after 5 tokens", state)):
            for name, leaf in leaves(each):
                wanted = state_dtype(dtype)
                right = not leaf.is_floating_point() or leaf.dtype == wanted
                expect(right, f"with parameters in {dtype}, leaf {name} of {when} is {leaf.dtype}, not {wanted}")


@check(NON_CAUSAL)
def carries_nothing(subject: Subject) -> None:
    """A mixer that is not causal carries the state () and refuses to step."""
    mixer = subject.mixer
    expect(mixer.init_state(2) == (), "the mixer is not causal, and init_state(2) is not ()")
    x = subject.input(2, 5)
    expect(mixer(x)[1] == (), "the mixer is not causal, and the state after 5 tokens is not ()")
    try:
        mixer.step(x[:, 0], ())
    except ValueError:
        return
    expect(False, "the mixer is not causal, and step does not raise")


@check()
def equals_reference(subject: Subject) -> None:
    """The outputs are those of the literal equations, token by token."""
    home = type(subject.given).__module__
    if subject.reference is None:
        expect(False, f"has no reference: {home} must define reference(mixer, x), or pass reference= to check_mixer")
        return
    for batch, time in ((2, 1), (1, 41), (2, 19)):
        x = subject.input(batch, time)
        with torch.no_grad():
            expected = subject.reference(subject.mixer, x)
            expect_close(subject.mixer(x)[0], expected, f"outputs against the reference, B = {batch}, T = {time}", 1e-8)


def _check_outputs(subject: Subject, y: Tensor, leading: tuple[int, ...], what: str) -> None:
    is_model = subject.mixer.reads_tokens or subject.mixer.input_dim is not None  # its outputs are answers
    shape = (*leading, "answers" if is_model else subject.mixer.dim)
    right = y.shape[: len(leading)] == leading and y.dim() == len(shape)
    if not is_model:
        right = right and y.size(-1) == subject.mixer.dim
    expect(right, f"{what} have shape {tuple(y.shape)}, not {shape}")
    expect(y.dtype == torch.float64, f"{what} are {y.dtype} where the input and the parameters are torch.float64")
