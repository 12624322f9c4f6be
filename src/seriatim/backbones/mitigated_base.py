"""The family of Mamba-2 layers whose recurrence is changed against state collapse, with no parameter of its own."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seriatim.core.build import Spec, build, resolve, spec
from seriatim.core.errors import SeriatimError, check_size
from seriatim.core.mixer import Mixer
from seriatim.core.state import State
from seriatim.mixers.state_space.base import DualState
from seriatim.mixers.state_space.mamba2 import Mamba2

__all__ = ["MitigatedMamba2", "mitigate"]


class MitigatedMamba2(Mixer):
    r"""A Mamba-2 layer, as trained, with another recurrence of the states of its heads.

    A method calls `set_inner`, and writes `init_system` and `scan`; all else is the layer's.

    Source: Chen et al., 2024, arXiv:2410.07145 (first version, training-free mitigations of state collapse).
    """

    mamba: Mamba2

    def set_inner(self, dim: int, inner: Spec) -> None:
        """Builds the layer `mamba`."""
        check_size(dim=dim)
        try:
            mamba = build(inner, dim=dim)
        except SeriatimError as error:
            raise SeriatimError(f"inner: {error}") from error
        if not isinstance(mamba, Mamba2) or mamba.dim != dim:
            raise SeriatimError(f"inner is a {type(mamba).__name__}; it must be a mamba2 of {dim} features")
        self.dim, self.inner, self.mamba = dim, inner, mamba

    @abstractmethod
    def init_system(self, batch: int) -> State:
        """The heads' states before anything was read."""

    @abstractmethod
    def scan(
        self,
        u: Tensor,
        step: Tensor,
        B: Tensor,
        C: Tensor,
        system: State,
        reset: Tensor | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, State]:
        """The heads' outputs (B, T, H, P), D u included, and their states. Steps in the padding are 0."""

    def init_state(self, batch: int) -> DualState:
        return self.mamba.init_state(batch)._replace(system=self.init_system(batch))

    def mix(
        self, x: Tensor, state: DualState, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, DualState]:
        inputs, gate, tail = self.mamba.project(x, state.tail, reset, lengths)
        y, system = self.scan(*inputs, state.system, reset, lengths)
        return self.mamba.readout(y, gate), DualState(tail, system)


def mitigate(model: Any, mitigation: Spec) -> Any:
    """A copy of a model with its weights, in which every Mamba-2 layer is inside the mitigation.

    Args:
        model: a `mamba2`, or a stack or model with `layers`.
        mitigation: a spec such as `{"mixer": "state_window", "size": 512}`; it gets `dim` and `inner`.

    Raises:
        SeriatimError: the model has no such layer, or the spec is not of a mitigation.
    """
    options = {"mixer": mitigation} if isinstance(mitigation, str) else dict(mitigation)
    name = options.get("mixer")
    if not isinstance(name, str) or not issubclass(resolve(name), MitigatedMamba2):
        raise SeriatimError(f"mitigation is {mitigation!r}; it must be the spec of a mitigation, such as state_window")
    described = spec(model)
    if isinstance(model, Mamba2):
        copy = build({**options, "inner": described}, dim=model.dim)
        renamed = {f"mamba.{key}": value for key, value in model.state_dict().items()}
    else:
        layers = list(described.get("layers", ()))
        found = [index for index, layer in enumerate(layers) if _is_mamba2(layer)]
        if not found:
            raise SeriatimError(f"model is a {type(model).__name__} without a mamba2 among its layers")
        for index in found:
            layers[index] = {**options, "inner": layers[index]}
        copy = build({**described, "layers": layers})
        prefix = re.compile(rf"(.*blocks\.({'|'.join(map(str, found))})\.mixer\.)")
        renamed = {prefix.sub(r"\1mamba.", key): value for key, value in model.state_dict().items()}
    parameter = next(model.parameters())
    copy = copy.to(device=parameter.device, dtype=parameter.dtype)
    copy.load_state_dict(renamed)
    return copy.train(model.training)


def _is_mamba2(layer: Spec) -> bool:
    name = layer.get("mixer") if isinstance(layer, Mapping) else layer
    return isinstance(name, str) and resolve(name) is Mamba2
