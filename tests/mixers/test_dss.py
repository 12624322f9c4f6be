"""DSS: its softmax, for eigenvalues of either sign."""

import pytest
import torch

from agreement import assert_close
from seriatim.core.build import build
from seriatim.mixers.state_space.dss import reference

LENGTH = 30


def softmaxed(real):
    torch.manual_seed(0)
    mixer = build("dss", dim=2, state_size=4, variant="softmax", length=LENGTH).double()
    with torch.no_grad():
        mixer.real.copy_(torch.tensor(real))
        mixer.log_step.fill_(-1.0)
    return mixer


def test_a_kernel_of_a_real_eigenvalue_is_a_softmax():
    mixer = softmaxed([-0.3, 0.2])
    with torch.no_grad():
        mixer.imaginary.zero_()
        mixer.C.zero_()
        mixer.C[0, 0, 0] = -0.3  # w / lambda = 1
        mixer.C[1, 1, 0] = 0.2
    steps = torch.arange(LENGTH, dtype=torch.float64) * mixer.log_step[0].exp()
    wanted = torch.stack([torch.softmax(real * steps, 0) for real in (-0.3, 0.2)])
    assert_close([mixer.kernel(LENGTH).squeeze(1)], [wanted], 1e-7, "kernel")


@pytest.mark.parametrize("real", [[-0.5, 0.4], [0.3, 0.0]])
def test_real_parts_of_any_sign(real):
    mixer, x = softmaxed(real), torch.randn(2, LENGTH, 2, dtype=torch.float64)
    assert_close([mixer(x)[0]], [reference(mixer, x)], 1e-9, "output")


def test_sums_of_growing_powers_do_not_overflow():
    """The square of their sum is beyond float32: it must be taken from the largest power."""
    mixer, x = softmaxed([4.0, 5.0]), torch.randn(2, LENGTH, 2, dtype=torch.float64)
    wanted, y = mixer(x)[0], mixer.float()(x.float())[0]
    y.sum().backward()
    assert_close([y.double()], [wanted], 1e-4, "output in float32")
    assert torch.isfinite(mixer.real.grad).all()
