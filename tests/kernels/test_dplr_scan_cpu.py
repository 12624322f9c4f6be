"""dplr_scan on the kernels of delta_scan; what holds of both is in test_delta_scan_cpu.py."""

import pytest
import torch
from kernel_cases import assert_like_reference, assert_near, laid_out

from agreement import resets
from matrix_memories import dplr_arguments, state_for
from seriatim.ops import delta_scan
from seriatim.ops.dplr_scan import dplr_scan


def tensors(batch, time, *sizes):
    """Arguments and a state, in float32."""
    return [laid_out(z, "plain") for z in (*dplr_arguments(0, batch, time, *sizes), state_for(0, batch, *sizes))]


@pytest.mark.parametrize(("rate", "tolerance"), [(0.0, 2e-6), (1.0, 2e-6), (2.0, 1e-5)])
def test_the_same_key_again_and_again(rate, tolerance):
    """The system is as far from the identity as it can be. At a rate of 2 what is read is turned over."""
    inputs = tensors(1, 100, 2, 17, 20)
    inputs[4] = inputs[4][:, :1].detach().expand_as(inputs[4]).requires_grad_()
    inputs[5] = (-rate * inputs[4]).detach().requires_grad_()
    assert_like_reference("delta_scan", lambda *z: dplr_scan(*z[:-1], state=z[-1]), inputs, tolerance)


def test_with_one_key_it_is_the_delta_rule():
    q, _, v, g, r, _, state = (z.detach() for z in tensors(2, 70, 2, 20, 9))
    beta, reset = torch.rand(2, 70, 2, generator=torch.Generator().manual_seed(0)), resets(0, 2, 70, 0.05)
    weak = beta.unsqueeze(-1)
    found = dplr_scan(q, r, weak * v, g, -weak * g.exp() * r, r, state=state, reset=reset)
    assert_near(found, delta_scan(q, r, v, beta, g, state=state, reset=reset), 2e-6, "value")
