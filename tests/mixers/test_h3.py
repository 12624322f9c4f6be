"""H3: what it is without its systems."""

import pytest
import torch

from agreement import assert_close
from seriatim import ops
from seriatim.core.build import build
from seriatim.core.errors import SeriatimError


def h3(**options):
    torch.manual_seed(0)
    return build("h3", dim=6, state_size=2, shift_size=3, **options).double()


def test_without_shift_and_decay_it_is_linear_attention():
    mixer = h3(head_dim=3, discretization="zoh")
    with torch.no_grad():
        mixer.shift.weight.zero_()
        mixer.shift_skip.fill_(1.0)
        mixer.skip.zero_()
        mixer.system.log_real.fill_(-30.0)
        mixer.system.imaginary.zero_()
        mixer.system.log_step.zero_()
        mixer.system.C.copy_(torch.tensor([0.5, 0.0]).expand_as(mixer.system.C))
    x = torch.randn(2, 20, 6, dtype=torch.float64)
    q, k, v = (z.unflatten(2, (2, 3)) for z in mixer.qkv(x).chunk(3, -1))
    wanted = mixer.out(ops.matrix_scan(q, k, v)[0].flatten(2))
    assert_close([mixer(x)[0]], [wanted], 1e-9, "output")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 4}, "dim is 6 and head_dim is 4; dim must be a multiple of head_dim"),
        ({"state_size": 3}, "state_size is 3; it must be even"),
        ({"shift_size": 0}, "shift_size is 0; it must be a whole number above 0"),
        ({"discretization": "euler"}, "discretization is 'euler'"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(SeriatimError, match=message):
        build("h3", dim=6, **options)
