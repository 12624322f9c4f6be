"""`check_mixer`: every property of the contract, on any mixer."""

import sys
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from time import perf_counter

import torch

from seriatim.core.errors import SeriatimError, nearest
from seriatim.core.mixer import Mixer
from seriatim.testing import copies, equation, forms, graphs, inputs, numerics, ragged, single, states
from seriatim.testing.report import ConformanceError, Report, explain, summary
from seriatim.testing.subject import Check, Reference, Subject

__all__ = ["CHECKS", "check_mixer"]

CHECKS: dict[str, Check] = {
    found.name: found
    for module in (equation, forms, ragged, states, inputs, numerics, single, copies, graphs)
    for found in vars(module).values()
    if isinstance(found, Check)
}


def check_mixer(
    mixer: Mixer,
    *,
    reference: Reference | None = None,
    skip: Mapping[str, str] | None = None,
    only: Iterable[str] | None = None,
    jitter: float = 0.1,
    log: Callable[[str], object] | None = None,
) -> Report:
    """Checks every property of the contract and raises one error that lists all that do not hold.

    The mixer is left as it is, and so are torch's random numbers: the checks work on copies in float64 (float32 and
    bfloat16 where that is the question), in evaluation mode, on inputs from fixed seeds. States are compared by
    what they do next.

    Args:
        mixer: any `Mixer`: features or tokens, causal or not.
        reference: `reference(mixer, x) -> outputs`, the literal equations; by default the function of that name in the
            module that defines the mixer's class.
        skip: name of a check to the reason why it need not hold. A skipped check is still run, and one that would pass
            is a failure, so that no skip outlives its reason.
        only: names of the checks to run; by default all.
        jitter: relative size of the noise added to the copies' parameters, so that one that begins at zero hides
            nothing.
        log: called with one line as each check ends; `log=print` shows the progress.

    Returns:
        What passed, what was skipped and why, what does not apply and why, and the seconds each check took.

    Raises:
        ConformanceError: (an AssertionError) a check failed; `.failures` maps its name to what it saw.
        SeriatimError: an argument is wrong.
    """
    __tracebackhide__ = True  # pytest shows the error, not this function
    if not isinstance(mixer, Mixer):
        raise SeriatimError(f"mixer is {type(mixer).__name__}; it must be a seriatim.core.mixer.Mixer")
    skip = dict(skip or {})
    _check_names("skip", skip)
    for name, reason in skip.items():
        if not isinstance(reason, str) or not reason.strip():
            raise SeriatimError(f"skip[{name!r}] is {reason!r}; it must be a written reason")
    chosen = list(CHECKS if only is None else only)
    _check_names("only", chosen)

    subject = _subject(mixer, reference, jitter)
    report, failures, raised = Report(type(mixer).__name__), {}, []
    for name in chosen:
        started = perf_counter()
        why_not = CHECKS[name].why_not(subject)
        error = None if why_not else _run(CHECKS[name], subject)
        report.seconds[name] = perf_counter() - started
        outcome, failure = _judge(why_not, error, skip.get(name))
        if failure is not None:
            failures[name] = failure
            raised.append(error)
        elif outcome == "skipped":
            report.skipped[name] = skip[name]
        elif outcome == "does not apply":
            report.inapplicable[name] = why_not or ""
        else:
            report.passed.append(name)
        if log is not None:
            log(f"{name}: {failure or outcome} ({report.seconds[name]:.2f} s)")
    if failures:
        cause = next((error for error in raised if not isinstance(error, ConformanceError | None)), None)
        raise ConformanceError(summary(report.mixer, failures, len(chosen)), failures) from cause
    return report


def _judge(why_not: str | None, error: Exception | None, reason: str | None) -> tuple[str, str | None]:
    """The outcome of one check in words, and what is to be reported as a failure if it is one."""
    if reason is None:
        if why_not:
            return "does not apply", None
        return ("failed", explain(error)) if error else ("passed", None)
    if why_not:
        return "failed", f"is skipped ({reason}), but does not apply: {why_not}; remove the skip"
    if error is None:
        return "failed", f"is skipped ({reason}), but passes; remove the skip"
    return "skipped", None


def _run(check: Check, subject: Subject) -> Exception | None:
    try:
        with torch.random.fork_rng(devices=[]):
            check(subject)
    except Exception as error:  # a mixer may fail in any way; all of them are findings
        return error
    return None


def _subject(mixer: Mixer, reference: Reference | None, jitter: float) -> Subject:
    if reference is None:
        reference = getattr(sys.modules[type(mixer).__module__], "reference", None)
    try:
        deepcopy(mixer)
    except Exception as error:
        failures = {"copies": f"deepcopy(mixer) {explain(error)}"}
        raise ConformanceError(summary(type(mixer).__name__, failures, len(CHECKS)), failures) from error
    return Subject(mixer, reference, jitter)


def _check_names(argument: str, names: Iterable[str]) -> None:
    for name in names:
        if name not in CHECKS:
            known = ", ".join(nearest(name, CHECKS))
            raise SeriatimError(f"{argument} names {name!r}, which is no check; there are {known}")
