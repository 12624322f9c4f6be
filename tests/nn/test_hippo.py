"""HiPPO matrices and discretisation, held against their definitions."""

import math

import pytest
import torch

from agreement import assert_close
from seriatim.core.errors import SeriatimError
from seriatim.nn.discretization import discretize, discretize_diagonal
from seriatim.nn.hippo import diagonal_start, legendre_delay, legs, normal_low_rank


@pytest.mark.parametrize("size", [2, 8, 64])
def test_normal_plus_low_rank_is_legs(size):
    A, B = legs(size)
    found = normal_low_rank(size)
    V, P = (torch.cat([z, z.conj()], -1) for z in (found.vectors, found.low_rank))
    eigenvalues = torch.cat([found.eigenvalues, found.eigenvalues.conj()])
    rebuilt = V @ (torch.diag(eigenvalues) - torch.outer(P, P.conj())) @ V.mH
    assert_close([rebuilt.real, rebuilt.imag], [A, torch.zeros_like(A)], 1e-11, "matrix")
    assert_close([(V @ torch.cat([found.B, found.B.conj()])).real], [B], 1e-12, "vector")
    assert (found.eigenvalues.imag > 0).all()


def test_a_delay_network_delays():
    """Its state, read by Legendre polynomials, is the input a window ago."""
    size, window, ticks = 12, 1.0, 4000
    A, B = discretize(*legendre_delay(size, window), torch.tensor(1 / 1000, dtype=torch.float64), "zoh")
    time = torch.arange(ticks, dtype=torch.float64) / 1000
    signal, m, answers = torch.sin(4 * time), torch.zeros(size, dtype=torch.float64), []
    for u in signal:
        m = A @ m + B * u
        answers.append(m.sum())  # polynomials on [0, 1] are all 1 at its far end
    assert (torch.stack(answers)[2000:] - signal[1000:-1000]).abs().max() < 0.01


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_a_diagonal_is_a_matrix(rule):
    eigenvalues, step = diagonal_start("lin", 8).expand(3, -1), torch.tensor([1e-3, 0.1, 1.0]).double()
    B = torch.randn(3, 4, dtype=torch.float64).to(eigenvalues.dtype)
    A, b = discretize_diagonal(eigenvalues, B, step, rule)
    whole_A, whole_b = discretize(torch.diag_embed(eigenvalues), B, step.to(B.dtype), rule)
    diagonal = torch.diag_embed(A)
    assert_close(
        [torch.view_as_real(whole_A), torch.view_as_real(whole_b)],
        [torch.view_as_real(diagonal), torch.view_as_real(b)],
        1e-12,
        "value",
    )


@pytest.mark.parametrize(("rule", "order"), [("zoh", None), ("bilinear", 2)])
def test_discretisation_against_the_differential_equation(rule, order):
    """Constant input: a zero-order hold is exact, trapezoids are of second order."""
    A, B = (-0.3, 2.0)
    exact = (math.exp(A) - 1) / A * B
    errors = []
    for ticks in (8, 16):
        matrix, vector, step = (torch.tensor(z, dtype=torch.float64) for z in ([[A]], [B], 1 / ticks))
        a, b = discretize(matrix, vector, step, rule)
        h = torch.zeros_like(vector)
        for _ in range(ticks):
            h = a @ h + b
        errors.append(abs(h.item() - exact))
    if order is None:
        assert max(errors) < 1e-14
    else:
        assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.05)


def test_diagonal_starts():
    assert_close([diagonal_start("lin", 6).imag], [math.pi * torch.arange(3).double()], 1e-15, "imaginary part")
    wanted = 6 / math.pi * torch.tensor([5.0, 1.0, 0.2], dtype=torch.float64)
    assert_close([diagonal_start("inv", 6).imag], [wanted], 1e-15, "imaginary part")
    assert (diagonal_start("legs", 64).real == -0.5).all()


def test_wrong_arguments_are_named():
    with pytest.raises(SeriatimError, match="init is 'random'; it must be one of legs, lin, inv"):
        diagonal_start("random", 6)
    with pytest.raises(SeriatimError, match="state_size is 5; it must be even"):
        normal_low_rank(5)
    with pytest.raises(SeriatimError, match="window is 0; it must be a finite number above 0"):
        legendre_delay(4, 0)
