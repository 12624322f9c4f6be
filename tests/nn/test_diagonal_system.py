"""Diagonal systems as a layer."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.errors import SeriatimError
from seriatim.nn.diagonal_system import DiagonalSystem, reference


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_systems_are_those_of_the_equations(rule, weighted):
    torch.manual_seed(0)
    systems = DiagonalSystem(3, 2, 6, "legs", rule, weighted=weighted).double()
    if weighted:
        torch.nn.init.normal_(systems.B)
    A, B, C = systems(rate=1.5)
    for system in range(3):
        a, b, c = reference(systems, system, rate=1.5)
        powers = [(c * a**i * b).sum(1) for i in range(9)]
        found = [(C[system] * A[system] ** i * B[system]).sum(1).real for i in range(9)]
        assert_close(found, [power.real for power in powers], 1e-12, "kernel")
        assert max(power.imag.abs().max() for power in powers) < 1e-12


def test_a_wrong_option_is_named():
    with pytest.raises(SeriatimError, match="discretization is 'euler'"):
        DiagonalSystem(3, discretization="euler")
    with pytest.raises(SeriatimError, match="init is 'random'; it must be one of legs, lin, inv"):
        DiagonalSystem(3, init="random")
