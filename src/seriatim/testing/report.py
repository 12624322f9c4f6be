"""What a check says: the error of a mixer that does not conform, the report of one that does, and comparisons."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "TOLERANCE",
    "ConformanceError",
    "Report",
    "expect",
    "expect_close",
    "expect_finite",
    "expect_same_gradients",
    "explain",
    "summary",
]

TOLERANCE = 1e-9  # float64: what different orders of the same sums may differ by, with a wide margin


class ConformanceError(AssertionError):
    """A mixer does not keep the contract. The message names each check that failed and what it saw.

    Attributes:
        failures: the name of each check that failed, and what it saw.
    """

    def __init__(self, message: str, failures: Mapping[str, str] | None = None):
        super().__init__(message)
        self.failures = dict(failures or {})


@dataclass(frozen=True)
class Report:
    """What `check_mixer` did.

    Attributes:
        mixer: the class that was checked.
        passed: names of the checks that passed.
        skipped: names of the checks that were skipped (they were run, and fail), each with its written reason.
        inapplicable: names of the checks that say nothing about such a mixer, each with the reason.
        seconds: how long each check took.
    """

    mixer: str
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    inapplicable: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        counts = f"{len(self.passed)} checks passed, {len(self.skipped)} skipped, {len(self.inapplicable)} do not apply"
        return f"{self.mixer} conforms: {counts} ({sum(self.seconds.values()):.1f} s)"


def expect(condition: bool, message: str) -> None:
    """Raises ConformanceError with the message unless the condition holds."""
    if not condition:
        raise ConformanceError(message)


def expect_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
    """Raises unless |actual - expected| <= tolerance * (1 + max |expected|) everywhere; equal infinities are equal.

    The message says how far off, absolutely and relative to the largest expected value, and where first.
    """
    shapes = f"{tuple(actual.shape)}, not {tuple(expected.shape)}"
    expect(actual.shape == expected.shape, f"{what}: the shape is {shapes}")
    actual, expected = (_wide(z.detach()) for z in (actual, expected))
    if actual.numel() == 0:
        return
    difference = torch.where(actual == expected, 0.0, (actual - expected).abs())
    finite = expected.abs()[expected.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    wrong = ~(difference <= tolerance * (1 + scale))  # also true of NaN
    if not wrong.any():
        return
    first = tuple(wrong.nonzero()[0].tolist())
    worst = float(difference.nan_to_num(nan=torch.inf).max())
    relative = worst / scale if scale else torch.inf
    place = f"first at {list(first)}, {_shown(actual[first])} instead of {_shown(expected[first])}"
    share = f"{int(wrong.sum())} of {wrong.numel()} values"
    raise ConformanceError(
        f"{what}, shape {tuple(actual.shape)}: off by {worst:.2g} (relative {relative:.2g}) in {share}, {place}"
    )


def expect_finite(values: Tensor, what: str) -> None:
    """Raises unless every value is finite, saying how many are not and where first."""
    wrong = ~values.detach().isfinite()
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        share = f"{int(wrong.sum())} of {wrong.numel()} values are not finite"
        place = f"first at {list(first)}, {_shown(values.detach()[first])}"
        raise ConformanceError(f"{what}, shape {tuple(values.shape)}: {share}, {place}")


def expect_same_gradients(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    """Raises unless each named gradient is close to the expected one of that name."""
    for name, gradient in expected.items():
        expect_close(actual[name], gradient, f"gradient of {name} {what}", 10 * TOLERANCE)


def summary(mixer: str, failures: Mapping[str, str], checks: int) -> str:
    """All failures in one text; checks that saw the same are named together."""
    alike: dict[str, list[str]] = {}
    for name, failure in failures.items():
        alike.setdefault(failure, []).append(name)
    lines = [f"  {', '.join(names)}: {failure}" for failure, names in alike.items()]
    return "\n".join([f"{mixer} does not conform: {len(failures)} of {checks} checks failed", *lines])


def explain(error: Exception) -> str:
    """One failure as text: what a check said, or the error that the mixer raised and the last line outside of torch."""
    if isinstance(error, ConformanceError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if not Path(frame.filename).is_relative_to(Path(torch.__file__).parent)]
    frame = (ours or frames)[-1]
    message = " ".join(str(error).split())
    message = message if len(message) <= 400 else message[:400] + " ..."
    return f"raised {type(error).__name__}: {message} ({frame.filename}:{frame.lineno} in {frame.name})"


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.complex128 if values.is_complex() else torch.float64)


def _shown(value: Tensor) -> str:
    return f"{value.item():.6g}"
