"""Models of equal size from different mixers."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from seriatim.cli.task_training import parameters_of
from seriatim.core.build import Spec
from seriatim.core.errors import SeriatimError
from seriatim.tasks.base import Task

__all__ = ["Sized", "sized"]

STEP = 4  # between widths that are tried


class Sized(NamedTuple):
    """The options of a model and how many parameters it has."""

    options: dict[str, Any]
    parameters: int


def sized(mixer: Spec, depth: int, task: Task, options: Mapping[str, Any], parameters: int) -> Sized:
    """The model of `depth` such layers whose number of parameters is nearest to `parameters`.

    Its width is the best multiple of 4 that the mixer can be built with; the feed-forward layers, where there are any,
    make up for the rest by their `expansion`. Raises SeriatimError where the mixer can be built with no width.
    """
    best: Sized | None = None
    refusal: SeriatimError | None = None
    dim, larger = STEP, 0  # `larger`: widths in a row that made a model that is too large
    while larger < 2 and dim <= 8192:
        tried = {**options, "layers": [mixer] * depth, "dim": dim}
        try:
            count = parameters_of(task, tried)
        except SeriatimError as error:
            refusal = error
        else:
            if best is None or abs(count - parameters) < abs(best.parameters - parameters):
                best = Sized(tried, count)
            larger += count > parameters
        dim += STEP
    if best is None:
        raise refusal or SeriatimError(f"{mixer!r} cannot be built in any width")
    return _expanded(best, task, parameters)


def _expanded(model: Sized, task: Task, parameters: int) -> Sized:
    """The same with the expansion that comes nearest: the number of parameters is nearly linear in it."""
    expansion, best = model.options.get("expansion", 4.0), model
    more = parameters_of(task, {**model.options, "expansion": expansion + 1})
    if more > model.parameters:
        exact = expansion + (parameters - model.parameters) / (more - model.parameters)
        for tried in (round(exact + shift / 20, 2) for shift in range(-3, 4)):  # hidden widths are rounded
            if tried > 0:
                options = {**model.options, "expansion": tried}
                found = Sized(options, parameters_of(task, options))
                best = min(best, found, key=lambda sized: abs(sized.parameters - parameters))
    return best
