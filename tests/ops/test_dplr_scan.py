import pytest
import torch

import scans
from agreement import assert_backends_agree, assert_close, gradients, resets
from matrix_memories import dplr_arguments, state_for
from seriatim.core.errors import SeriatimError
from seriatim.ops import backend, delta_scan, matrix_scan
from seriatim.ops.dplr_scan import dplr_scan


def test_a_transition_under_which_the_memory_grows():
    """One direction grows by a tenth with every token, in the recurrence as well."""
    tensors = dplr_arguments(0, 1, 100)
    tensors[3] = torch.full_like(tensors[3], -0.01).requires_grad_()
    tensors[4] = tensors[4][:, :1].detach().expand_as(tensors[4]).clone().requires_grad_()
    tensors[5] = (0.1 * tensors[4]).detach().requires_grad_()
    with backend("reference"):
        assert dplr_scan(*tensors)[1].abs().max() > 1e3
    assert_backends_agree(lambda: dplr_scan(*tensors), tensors)


@pytest.mark.parametrize("rate", [0.0, 1.0, 2.0])
def test_the_same_key_again_and_again(rate):
    """The system is then as far from the identity as it can be."""
    tensors = dplr_arguments(0, 1, 100)
    tensors[4] = tensors[4][:, :1].detach().expand_as(tensors[4]).clone().requires_grad_()
    tensors[5] = (-rate * tensors[4]).detach().requires_grad_()
    assert_backends_agree(lambda: dplr_scan(*tensors), tensors)


def test_with_one_key_it_is_the_delta_rule():
    q, k, v, g, _, _ = (z.detach() for z in dplr_arguments(0, 2, 70))
    beta = torch.rand(2, 70, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state, reset = state_for(0, 2), resets(0, 2, 70, 0.05)
    weak = beta.unsqueeze(-1)
    found = dplr_scan(q, k, weak * v, g, -weak * g.exp() * k, k, scale=0.3, state=state, reset=reset)
    assert_close(found, delta_scan(q, k, v, beta, g, scale=0.3, state=state, reset=reset), 1e-10, "value")


def test_where_nothing_is_read_the_memory_only_fades():
    q, k, v, g, read, write = (z.detach() for z in dplr_arguments(0, 2, 70))
    wanted = matrix_scan(q, k, v, g)
    assert_close(dplr_scan(q, k, v, g, torch.zeros_like(read), write), wanted, 1e-11, "value")
    assert_close(dplr_scan(q, k, v, g, read, torch.zeros_like(write)), wanted, 1e-11, "value")


def test_a_gradient_in_a_decay_is_as_exact_among_large_ones():
    """A difference of running sums over the tokens would lose the gradients of decays that fade almost everything."""
    tensors = dplr_arguments(0, 1, 64, rate=0.1)
    strong = torch.arange(64).view(1, 64, 1, 1) % 8 == 0
    tensors[3] = torch.where(strong, -60.0, tensors[3]).detach().requires_grad_()
    tensors[5] = torch.where(strong, 0.0, tensors[5]).detach().requires_grad_()
    found = gradients(dplr_scan(*tensors), tensors)[3][:, 8::8]
    with backend("reference"):
        wanted = gradients(dplr_scan(*tensors), tensors)[3][:, 8::8]
    assert wanted.abs().max() < 1e-20
    assert_close([found / wanted.abs().max()], [wanted / wanted.abs().max()], 1e-9, "gradient")


def test_the_operator_is_registered_whole():
    """Fakes of the right shapes and strides, nothing changed in place, gradients through the compiler."""
    *tensors, read, write = dplr_arguments(0, 2, 40)
    inputs = (*tensors, state_for(0, 2), None, read, write, 16)
    torch.library.opcheck(torch.ops.seriatim.delta_scan.default, inputs)


def test_states_are_kept_once_a_chunk():
    """Beside the inputs: a state of 16 x 16 for 32 tokens. What is inside the chunks is computed again."""
    kept = scans.saved_bytes(dplr_scan, dplr_arguments(0, 1, 1024, 1, 16, 16))
    assert kept < 1.2 * (1024 / 32) * 16 * 16 * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(2, 5, 2, 4)}, r"k has shape \(2, 5, 2, 4\); it must be .* = \(2, 5, 2, 3\)"),
        ({"v": torch.zeros(2, 6, 2, 2)}, r"v has shape \(2, 6, 2, 2\); it must be .* = \(2, 5, 2, values\)"),
        ({"log_decay": None}, r"log_decay is None; it must be a tensor of shape \(batch, time, heads, keys\)"),
        ({"read": torch.zeros(2, 5, 2)}, r"read has shape \(2, 5, 2\); it must be .* = \(2, 5, 2, 3\)"),
        ({"write": torch.zeros(2, 5, 2, 3, dtype=torch.int64)}, "write has dtype torch.int64; it must be floating"),
        ({"state": torch.zeros(2, 2, 2, 3)}, r"state has shape \(2, 2, 2, 3\); it must be .* = \(2, 2, 3, 2\)"),
        ({"reset": torch.zeros(2, 4, dtype=torch.bool)}, r"reset has shape \(2, 4\); it must be .* = \(2, 5\)"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    keys = torch.zeros(2, 5, 2, 3)
    good = {"q": keys, "k": keys, "v": torch.zeros(2, 5, 2, 2), "log_decay": keys, "read": keys, "write": keys}
    with pytest.raises(SeriatimError, match=message):
        dplr_scan(**{**good, **change})
