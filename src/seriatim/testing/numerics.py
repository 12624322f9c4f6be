"""Gradients by finite differences, half precision, extreme inputs and long sequences."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from seriatim.core.mixer import Mixer
from seriatim.core.state import State, leaves, map_state
from seriatim.testing.report import ConformanceError, expect, expect_finite
from seriatim.testing.subject import FEATURES, STATE, Subject, check

__all__ = [
    "autocast_drift",
    "bf16_drift_long",
    "bf16_drift_short",
    "finite_at_extremes",
    "finite_when_long",
    "gradcheck_input",
    "gradcheck_parameters",
    "gradcheck_state",
    "parameters_have_gradients",
]

DRIFT = 0.05  # root mean square of the error against that of the outputs; one or two layers measure 0.002 to 0.012
SEGMENT = 512  # tokens a long sequence is read by


@check(FEATURES)
def gradcheck_input(subject: Subject) -> None:
    """The gradient of outputs and state with respect to the input is that of finite differences."""
    state = subject.carried(2)
    _gradcheck(lambda x: _floating(subject.mixer(x, state)), (subject.live_input(2, 18),), "the input (2, 18, dim)")


@check(STATE)
def gradcheck_state(subject: Subject) -> None:
    """The gradient of outputs and state with respect to the carried state is that of finite differences."""
    x, state = subject.input(2, 18), subject.live(subject.carried(2))
    live = [leaf for _, leaf in leaves(state) if leaf.requires_grad]

    def run(*given: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(given)
        filled = map_state(lambda leaf: next(remaining) if leaf.requires_grad else leaf, state)
        return _floating(subject.mixer(x, filled))

    if live:
        _gradcheck(run, tuple(live), "the carried state")


@check()
def gradcheck_parameters(subject: Subject) -> None:
    """The gradient of outputs and state with respect to each parameter is that of finite differences."""
    x = subject.input(2, 5)
    for name, parameter in subject.mixer.named_parameters():
        if parameter.requires_grad and parameter.numel():

            def run(value: Tensor, name: str = name) -> tuple[Tensor, ...]:
                return _floating(functional_call(subject.mixer, {name: value}, (x,)))

            _gradcheck(run, (parameter.detach().clone().requires_grad_(),), f"parameter {name}")


@check()
def parameters_have_gradients(subject: Subject) -> None:
    """Every parameter that is trained has a finite gradient that is not zero."""
    y, state = subject.mixer(subject.input(3, 41))
    for name, gradient in subject.gradients([y, subject.after(state, 3)]).items():
        expect_finite(gradient, f"gradient of {name}, T = 41")
        used = gradient.numel() == 0 or bool((gradient != 0).any())
        expect(used, f"the gradient of {name} is zero everywhere, T = 41")


@check()
def bf16_drift_short(subject: Subject) -> None:
    """In bfloat16 the outputs of 64 tokens stay near those of float64 with the same weights."""
    _drift(subject, 64)


@check()
def bf16_drift_long(subject: Subject) -> None:
    """In bfloat16 the last outputs of 4,096 tokens stay near those of float64 with the same weights."""
    _drift(subject, 4096)


@check()
def autocast_drift(subject: Subject) -> None:
    """Under bfloat16 autocast, outputs stay near those in float32, and states and gradients stay float32 and finite."""
    mixer, x = subject.copy(torch.float32), subject.input(2, 64, dtype=torch.float32)
    with torch.autocast(subject.device.type, torch.bfloat16):
        y, state = mixer(x)
        y, state = mixer(x, state)
    for name, leaf in leaves(state):
        right = not leaf.is_floating_point() or leaf.dtype == torch.float32
        expect(right, f"leaf {name} of the state is {leaf.dtype} under bfloat16 autocast, not torch.float32")
    with torch.no_grad():
        exact = mixer(x, mixer(x)[1])[0]
    _expect_near(y, exact, "outputs under bfloat16 autocast, the last 64 of 128 tokens")
    y.float().mean().backward()
    for name, parameter in mixer.named_parameters():
        if parameter.grad is not None:
            expect_finite(parameter.grad, f"gradient of {name} under bfloat16 autocast, 128 tokens")


@check()
def finite_at_extremes(subject: Subject) -> None:
    """Outputs, those that follow, and gradients are finite in float32 at inputs 0, 1e-30, 1e4 and constant."""
    mixer = subject.copy(torch.float32)
    for what, x in _extremes(subject):
        x = x.requires_grad_() if x.is_floating_point() else x
        y, state = mixer(x)
        expect_finite(y, f"outputs at {what}, T = 19, float32")
        expect_finite(mixer(x, state)[0], f"outputs from the state after {what}, T = 19, float32")
        wanted = {"the input": x, **dict(mixer.named_parameters())}
        wanted = {name: tensor for name, tensor in wanted.items() if tensor.requires_grad}
        if y.requires_grad:
            found = torch.autograd.grad(y.mean(), list(wanted.values()), allow_unused=True, materialize_grads=True)
            for name, gradient in zip(wanted, found, strict=True):
                expect_finite(gradient, f"gradient of {name} at {what}, T = 19, float32")


@check()
def finite_when_long(subject: Subject) -> None:
    """Outputs are finite in float32 after 10,000 tokens, of noise and of a constant."""
    mixer = subject.copy(torch.float32)
    x = subject.input(2, 10_000, dtype=torch.float32)
    x[1] = x[1, 0]
    with torch.no_grad():
        y = _read(mixer, x)
    expect_finite(y, "the last outputs of 10,000 tokens (row 0 noise, row 1 constant), float32")


def _floating(read: tuple[Tensor, State]) -> tuple[Tensor, ...]:
    y, state = read
    return (y, *(leaf for _, leaf in leaves(state) if leaf.is_floating_point() or leaf.is_complex()))


def _gradcheck(run: Callable[..., Any], given: tuple[Tensor, ...], what: str) -> None:
    # An output that does not depend on what is given, such as a state of inputs alone, would confuse gradcheck's count.
    dependent = [index for index, output in enumerate(run(*given)) if output.requires_grad]

    def outputs(*values: Tensor) -> tuple[Tensor, ...]:
        found = run(*values)
        return tuple(found[index] for index in dependent)

    try:
        torch.autograd.gradcheck(outputs, given, atol=1e-8, rtol=1e-5, fast_mode=True, nondet_tol=1e-12)
    except GradcheckError as error:
        message = " ".join(str(error).split("The above quantities")[0].split())
        raise ConformanceError(f"gradient with respect to {what} against finite differences: {message[:300]}") from None


def _drift(subject: Subject, time: int) -> None:
    half = subject.copy(torch.bfloat16)
    exact = Subject(half, jitter=0.0).mixer
    x = subject.input(2, time, dtype=torch.bfloat16)
    with torch.no_grad():
        ours = _read(half, x)
        theirs = _read(exact, x.double() if x.is_floating_point() else x)
    _expect_near(ours, theirs, f"outputs in bfloat16, the last {theirs.size(1)} of {time} tokens")


def _expect_near(half: Tensor, exact: Tensor, what: str) -> None:
    expect_finite(half, what)
    error, size = (z.detach().double().square().mean().sqrt() for z in (half - exact, exact))
    drift = float(error / size) if size > 0 else float(error)
    expect(drift <= DRIFT, f"{what}: off by {drift:.3f} of their root mean square; {DRIFT} is allowed")


def _read(mixer: Mixer, x: Tensor) -> Tensor:
    """Reads x by segments; the outputs of the last one."""
    state = None
    for part in x.split(SEGMENT, 1):
        y, state = mixer(part, state)
    return y[:, -64:]


def _extremes(subject: Subject) -> list[tuple[str, Tensor]]:
    x = subject.input(2, 19, dtype=torch.float32)
    if not x.is_floating_point():
        return [("one token repeated", x[:, :1].expand(2, 19)), ("token 0 repeated", torch.zeros_like(x))]
    return [
        ("input 0", torch.zeros_like(x)),
        ("inputs of size 1e-30", 1e-30 * x),
        ("inputs of size 1e4", 1e4 * x),
        ("input 1e4 everywhere", torch.full_like(x, 1e4)),
        ("input 1 everywhere", torch.ones_like(x)),
    ]
