import pytest
import torch

import scans
from agreement import assert_backends_agree, assert_close, gradients, normal
from matrix_memories import KINDS, delta_arguments
from seriatim.core.errors import SeriatimError
from seriatim.ops import backend
from seriatim.ops.delta_scan import delta_scan


@pytest.mark.parametrize("kind", KINDS)
def test_keys_so_long_that_the_memory_grows(kind):
    """Each write overshoots by half: the state is some 1e10 at the end, in the recurrence as well."""
    tensors = delta_arguments(kind, 0, 1, 80, length=1.3)
    tensors[3] = torch.full_like(tensors[3], 1.7).requires_grad_()
    if kind != "none":
        tensors[4] = (0.01 * tensors[4]).detach().requires_grad_()
    with backend("reference"):
        assert delta_scan(*tensors)[1].abs().max() > 1e4
    assert_backends_agree(lambda: delta_scan(*tensors), tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_the_same_key_again_and_again(kind, beta):
    """The system is then as far from the identity as it can be."""
    tensors = delta_arguments(kind, 0, 1, 100)
    tensors[1] = tensors[1][:, :1].detach().expand_as(tensors[1]).clone().requires_grad_()
    tensors[3] = torch.full_like(tensors[3], beta).requires_grad_()
    assert_backends_agree(lambda: delta_scan(*tensors), tensors)


@pytest.mark.parametrize("kind", ["head", "key"])
def test_a_gradient_in_a_decay_is_as_exact_among_large_ones(kind):
    """A difference of running sums over the tokens would lose the gradients of decays that fade almost everything."""
    tensors = delta_arguments(kind, 0, 1, 64)
    tensors[4] = torch.where(torch.arange(64).view(1, 64, *[1] * (tensors[4].dim() - 2)) % 8 == 0, -60.0, tensors[4])
    tensors[4] = tensors[4].detach().requires_grad_()
    found = gradients(delta_scan(*tensors), tensors)[4][:, 8::8]
    with backend("reference"):
        wanted = gradients(delta_scan(*tensors), tensors)[4][:, 8::8]
    assert wanted.abs().max() < 1e-20
    assert_close([found / wanted.abs().max()], [wanted / wanted.abs().max()], 1e-9, "gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_is_registered_whole(kind):
    """Fakes of the right shapes and strides, nothing changed in place, gradients through the compiler."""
    q, k, v, beta, *given = delta_arguments(kind, 0, 2, 40)
    log_decay = given[0].reshape(2, 40, 2, -1) if given else torch.zeros(2, 40, 2, 1, dtype=torch.float64)
    inputs = [z.detach().requires_grad_() for z in (q, k, v, log_decay, normal(5, 2, 2, 3, 2), beta.unsqueeze(-1))]
    torch.library.opcheck(torch.ops.seriatim.delta_scan.default, (*inputs, None, None, 16))


def test_gradients_that_can_be_differentiated_again_are_the_same():
    tensors = delta_arguments("key", 0, 2, 40)
    o, state = delta_scan(*tensors)
    loss = o.square().sum() + state.sum()
    once = torch.autograd.grad(loss, tensors, retain_graph=True)
    assert_close(torch.autograd.grad(loss, tensors, create_graph=True), once, 1e-12, "gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_kept_once_a_chunk(kind):
    """Beside the inputs: a state of 16 x 16 for 32 tokens at least. What is inside the chunks is computed again."""
    kept = scans.saved_bytes(delta_scan, delta_arguments(kind, 0, 1, 1024, 1, 16, 16))
    assert kept < 1.2 * (1024 / 32) * 16 * 16 * 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 6)}, r"q has shape \(2, 5, 6\); it must be \(batch, time, heads, keys\)"),
        ({"q": [1.0]}, r"q is \[1.0\]; it must be a tensor"),
        ({"k": torch.zeros(2, 5, 2, 4)}, r"k has shape \(2, 5, 2, 4\); it must be .* = \(2, 5, 2, 3\)"),
        ({"v": torch.zeros(2, 6, 2, 2)}, r"v has shape \(2, 6, 2, 2\); it must be .* = \(2, 5, 2, values\)"),
        ({"v": torch.zeros(2, 5, 2, 2, dtype=torch.int64)}, "v has dtype torch.int64; it must be floating"),
        ({"v": torch.zeros(2, 5, 2, 2, device="meta")}, "v is on meta; it must be on cpu, where q is"),
        ({"beta": None}, r"beta is None; it must be a tensor of shape \(batch, time, heads\)"),
        ({"beta": torch.zeros(2, 5, 2, 1)}, r"beta has shape \(2, 5, 2, 1\); it must be .* = \(2, 5, 2\)"),
        ({"log_decay": torch.zeros(2, 5, 3)}, r"log_decay has shape \(2, 5, 3\); it must be .* = \(2, 5, 2\)"),
        ({"log_decay": torch.zeros(2, 5, 2, 1)}, r"log_decay has shape .* = \(2, 5, 2, 3\)"),
        ({"log_decay": 0.5}, "log_decay is 0.5; it must be a tensor"),
        ({"state": torch.zeros(2, 2, 2, 3)}, r"state has shape \(2, 2, 2, 3\); it must be .* = \(2, 2, 3, 2\)"),
        ({"reset": torch.zeros(2, 5)}, "reset has dtype torch.float32; it must be torch.bool"),
        ({"reset": torch.zeros(2, 4, dtype=torch.bool)}, r"reset has shape \(2, 4\); it must be .* = \(2, 5\)"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    keys = torch.zeros(2, 5, 2, 3)
    good = {"q": keys, "k": keys, "v": torch.zeros(2, 5, 2, 2), "beta": torch.zeros(2, 5, 2)}
    with pytest.raises(SeriatimError, match=message):
        delta_scan(**{**good, **change})
