"""S4: the kernel of the paper's algorithm, the matrix it begins with, and stability."""

import pytest
import torch

from agreement import assert_close, gradients
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.nn.discretization import discretize
from seriatim.nn.hippo import legs


def s4(**options):
    torch.manual_seed(0)
    return build("s4", dim=4, **options).double()


@pytest.mark.parametrize("length", [1, 2, 3, 64, 101, 512])
@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_the_kernel_by_cauchy_products_is_the_kernel(length, rate):
    mixer = s4(state_size=64, rate=rate)
    found, wanted = mixer.kernel_by_cauchy(length), mixer.kernel(length)
    assert_close([found], [wanted], 1e-9, "kernel")
    parameters = [mixer.log_step, mixer.log_real, mixer.imaginary, mixer.P, mixer.B, mixer.C]
    assert_close(gradients(found, parameters), gradients(wanted, parameters), 1e-9, "gradient")


def test_the_convolution_with_that_kernel_is_the_recurrence():
    mixer, x = s4(state_size=16), torch.randn(2, 100, 4, dtype=torch.float64)
    assert_close([mixer.convolve(x, mixer.kernel_by_cauchy(100))], [mixer(x)[0]], 1e-9, "view")


def test_float32_keeps_its_digits():
    mixer = s4(state_size=64)
    wanted = mixer.kernel(2000)
    assert_close([mixer.float().kernel_by_cauchy(2000)], [wanted], 1e-5, "kernel")


def test_begins_as_hippo():
    """What B and C of the whole LegS would answer: the basis does not matter to the moments C A^i B."""
    mixer = s4(state_size=6)
    A, B, _ = mixer.system()
    wanted_A, wanted_B = discretize(*(z.expand(4, *z.shape) for z in legs(6)), mixer.log_step.exp(), "bilinear")
    assert_close(
        [torch.linalg.matrix_power(A, n).diagonal(dim1=1, dim2=2).sum(1) for n in (1, 2, 3)],
        [torch.linalg.matrix_power(wanted_A, n).diagonal(dim1=1, dim2=2).sum(1) for n in (1, 2, 3)],
        1e-6,  # parameters were float32
        "trace",
    )
    assert_close([2 * B.square().sum(1)], [wanted_B.square().sum(1)], 1e-6, "length")


@pytest.mark.parametrize("rule", ["bilinear", "zoh"])
def test_no_parameters_make_it_grow(rule):
    mixer = s4(state_size=8, discretization=rule)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, 3)
    assert torch.linalg.matrix_norm(mixer.system().A, ord=2).max() <= 1 + 1e-12


def test_the_kernel_by_cauchy_products_is_bilinear():
    with pytest.raises(SeriatimError, match="discretization is 'zoh'; kernel_by_cauchy needs 'bilinear'"):
        s4(discretization="zoh").kernel_by_cauchy(5)
    with pytest.raises(SeriatimError, match="length is 0; it must be a whole number above 0"):
        s4().kernel_by_cauchy(0)
