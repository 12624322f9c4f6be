"""LSSL: the matrix it begins with, and its continuous view."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.nn.hippo import legs

GAPS = [0.5, 1.0, 3.0, 0.1, 2.5, 1.0]


def lssl(**options):
    torch.manual_seed(0)
    return build("lssl", dim=3, state_size=8, channels=2, **options).double()


def test_begins_as_hippo():
    mixer = lssl()
    A, B, _, _ = mixer.continuous()
    step, (wanted_A, wanted_B) = mixer.log_step.exp(), legs(8)
    assert_close([A, B], [step[:, None, None] * wanted_A, step[:, None] * wanted_B], 1e-6, "start")


def test_even_gaps_are_the_recurrence():
    mixer, x = lssl(), torch.randn(2, 9, 3, dtype=torch.float64)
    whole, state = mixer(x)
    y, after_4 = mixer.forward_at(x[:, :4], [1.0] * 4)
    rest, last = mixer.forward_at(x[:, 4:], [1.0] * 5, after_4)
    assert_close([torch.cat([y, rest], 1), last], [whole, state], 1e-12, "view")


def test_uneven_gaps_are_the_differential_equation():
    """A zero-order hold is its exact solution: the exponential of the matrix, and of the input held."""
    mixer, x = lssl(discretization="zoh"), torch.randn(1, len(GAPS), 3, dtype=torch.float64)
    A, B, C, D = mixer.continuous()
    h, answers = torch.zeros(3, 8, dtype=torch.float64), []
    for u, gap in zip(x[0], GAPS, strict=True):
        decay = torch.matrix_exp(gap * A)
        held = torch.linalg.solve(A, (decay - torch.eye(8)) @ (B * u[:, None]).unsqueeze(2)).squeeze(2)
        h = (decay @ h.unsqueeze(2)).squeeze(2) + held
        answers.append((C @ h.unsqueeze(2)).squeeze(2))
    wanted = mixer.readout(x, x, torch.stack(answers)[None])
    y, state = mixer.forward_at(x, GAPS)
    assert_close([y, state], [wanted, h[None]], 1e-9, "view")
    assert (wanted - mixer.readout(x, x, torch.zeros(1, len(GAPS), 3, 2).double())).abs().max() > 0.01
    assert D.shape == (3, 2)


@pytest.mark.parametrize("rule", ["bilinear", "zoh"])
def test_the_kernel_of_short_steps_is_the_continuous_one(rule):
    mixer = lssl(discretization=rule, rate=1e-3)
    A, B, C, _ = mixer.continuous()
    times = torch.arange(0, 2000, 100, dtype=torch.float64)
    exact = torch.stack([(C @ torch.matrix_exp(t * A) @ B.unsqueeze(2)).squeeze(2) for t in times], 2)
    found = mixer.kernel(2000)[:, :, ::100]
    assert (found - exact).abs().max() < 2e-3 * exact.abs().max()


def test_uneven_samples_of_a_slow_signal_are_answered_alike():
    mixer = lssl()
    gaps = 1 + 0.9 * torch.sin(torch.arange(400.0, dtype=torch.float64))
    times, even = gaps.cumsum(0), torch.arange(1, 401, dtype=torch.float64)
    signal = [torch.sin(t / 40)[None, :, None].expand(1, -1, 3) for t in (times, even)]
    uneven, whole = mixer.forward_at(signal[0], gaps.tolist())[0], mixer(signal[1])[0]
    nearest = (times.round().long() - 1).clamp(0, 399)
    assert (uneven - whole[:, nearest])[:, :390].abs().max() < 0.1 * whole.abs().max()


def test_wrong_gaps_are_named():
    mixer, x = lssl(), torch.zeros(1, 2, 3, dtype=torch.float64)
    with pytest.raises(SeriatimError, match="gaps has 3 numbers; x has 2 tokens"):
        mixer.forward_at(x, [1.0] * 3)
    with pytest.raises(SeriatimError, match=r"gap is 0\.0; it must be a finite number above 0"):
        mixer.forward_at(x, [1.0, 0.0])


def test_all_of_the_matrix_and_the_steps_are_trained():
    mixer = lssl()
    mixer(torch.randn(2, 20, 3, dtype=torch.float64))[0].square().sum().backward()
    for name in ("P", "Q", "E", "T_diagonal", "T_below", "T_above", "B", "log_step"):
        assert (mixer.get_parameter(name).grad != 0).all(), name
