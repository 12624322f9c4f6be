"""The Legendre memory unit: its views are one map, and it remembers its window and no more."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.nn.discretization import discretize
from seriatim.nn.hippo import legendre_delay

TIME = 80


def made(**options):
    torch.manual_seed(0)
    return build("lmu", dim=6, **options).double()


@pytest.mark.parametrize("options", [{"window": 20.0}, {"order": 9, "window": 31.5, "memories": 2}])
def test_recurrence_convolution_and_dense_matrix_agree(options):
    mixer = made(**options)
    x = torch.randn(2, TIME, 6, dtype=torch.float64)
    u, kernel = mixer.project(x), mixer.kernel(TIME)
    lag = torch.arange(TIME)[:, None] - torch.arange(TIME)
    dense = kernel[:, :, lag.clamp(min=0)].masked_fill(lag < 0, 0.0)
    y = mixer.readout(x, u, torch.einsum("gmts,bsg->btgm", dense, u))
    wanted = mixer(x)[0]
    assert_close([mixer.convolve(x), y], [wanted, wanted], 1e-9, "view")
    A, B, _ = mixer.system()
    power, rows = B, []
    for _ in range(TIME):
        rows.append(power)
        power = (A @ power.unsqueeze(2)).squeeze(2)
    assert_close([kernel], [torch.stack(rows, 2)], 1e-9, "kernel")


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_memory_holds_the_window(share):
    """Legendre polynomials at a share of the window, times the memory, are the signal so long ago."""
    window, order = 200, 12
    mixer = made(order=order, window=float(window), signal_activation="identity")
    with torch.no_grad():
        mixer.signal.weight.fill_(0).view(-1)[0] = 1
    time = torch.arange(1200, dtype=torch.float64)
    signal = torch.sin(time / 40)
    x = torch.zeros(1, 1200, 6, dtype=torch.float64)
    x[0, :, 0] = signal
    cut = 1000
    memory = mixer(x[:, :cut])[1][0, 0]
    point = torch.tensor(2 * share - 1, dtype=torch.float64)
    polynomials = torch.stack([torch.special.legendre_polynomial_p(point, n) for n in range(order)])
    assert abs(polynomials @ memory - torch.sin((cut - 0.5 - share * window) / torch.tensor(40.0))) < 0.02


def test_what_is_older_than_the_window_is_forgotten():
    mixer = made(order=6, window=30.0, signal_activation="identity")
    kernel = mixer.kernel(300).squeeze(0)
    assert kernel[:, 200:].abs().max() < 1e-3 * kernel.abs().max()
    assert kernel[:, 15:30].abs().max() > 0.1 * kernel.abs().max()


def test_half_precision_keeps_the_system_and_no_checkpoint_holds_it():
    mixer = made(window=20.0)
    exact = mixer.system()
    made_here = discretize(*legendre_delay(6, 20.0), torch.ones((), dtype=torch.float64), "zoh")
    assert_close([z[0] for z in exact[:2]], made_here, 1e-14, "matrix in float64")
    rounded = mixer.bfloat16().system()
    assert_close(rounded[:2], exact[:2], 1e-7, "matrix")
    assert not any("bits" in name for name in mixer.state_dict())


def test_many_orders_are_discretised_exactly_enough():
    """In float32 the matrix exponential of 256 Legendre coefficients would be noise."""
    mixer = build("lmu", dim=4, order=256, window=784.0)
    A, _, _ = mixer.double().system()
    assert torch.linalg.eigvals(A[0]).abs().max() < 1
    y = mixer.float()(torch.randn(1, 3000, 4))[0]
    assert y.isfinite().all()
    assert y.abs().max() < 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order is 0; it must be a whole number above 0"),
        ({"window": 0.0}, "window is 0.0; it must be a finite number above 0"),
        ({"window": float("inf")}, "window is inf"),
        ({"memories": 1.5}, "memories is 1.5; it must be a whole number above 0"),
        ({"activation": "gelu"}, "activation is 'gelu'; it must be one of"),
        ({"signal_activation": "step"}, "signal_activation is 'step'; it must be one of"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(SeriatimError, match=message):
        build("lmu", dim=6, **options)
