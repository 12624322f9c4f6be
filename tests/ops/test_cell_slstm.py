import pytest
import torch

from agreement import assert_backends_agree, assert_close, floating, gradients, normal
from cells import arguments, call
from seriatim.ops.cell_scan import SLSTMState, init_cell_state

forgets = pytest.mark.parametrize("cell", ["slstm", "slstm_exp"])
INF = float("inf")


def without_stabiliser(cell, inputs, recurrent, bias, hidden, memory, normaliser, stabiliser):
    """The paper's equations as they stand before they are stabilised: sums that only small arguments leave finite."""
    memory, normaliser, out = memory * stabiliser.exp(), normaliser * stabiliser.exp(), []
    for token in inputs.unbind(1):
        u = torch.einsum("ghij,bhj->gbhi", recurrent, hidden) + bias.unsqueeze(1)
        i, f, z, o = (x + y for x, y in zip(token.unbind(1), u, strict=True))
        forget = f.sigmoid() if cell == "slstm" else f.exp()
        memory = forget * memory + i.exp() * z.tanh()
        normaliser = forget * normaliser + i.exp()
        hidden = o.sigmoid() * memory / normaliser
        out.append(hidden)
    return torch.stack(out, 1), memory, normaliser


@forgets
def test_the_stabiliser_changes_nothing(cell):
    tensors = arguments(cell, 0, 2, 7, 2, 3)
    hidden, state = call(cell, *tensors)
    scale = state.stabiliser.exp()
    found = hidden, state.cell * scale, state.normaliser * scale
    wanted = without_stabiliser(cell, *tensors)
    assert_close(found, wanted, 1e-12, "value")
    assert_close(gradients(found, tensors), gradients(wanted, tensors), 1e-11, "gradient")


@forgets
def test_the_gauge_is_free(cell):
    inputs, recurrent, bias, hidden, memory, normaliser, stabiliser = arguments(cell, 0, 3, 6, 2, 3)
    shift = 20 * normal(1, 3, 2, 3)
    moved = hidden, memory * shift.exp(), normaliser * shift.exp(), stabiliser - shift
    found = call(cell, inputs, recurrent, bias, *moved)
    wanted = call(cell, inputs, recurrent, bias, hidden, memory, normaliser, stabiliser)
    assert_close([found[0]], [wanted[0]], 1e-10, "value")
    needed = [inputs, recurrent, bias, hidden, memory, normaliser, stabiliser]
    *of_found, of_shift = gradients(found[0], [*needed, shift])
    assert_close(of_found, gradients(wanted[0], needed), 1e-10, "gradient")
    assert of_shift.abs().max() < 1e-10


@forgets
@pytest.mark.parametrize("empty", [0.0, 5.0, -INF])
def test_every_row_begins_by_itself(cell, empty):
    """A row that has read nothing takes its first token whole, however small, beside rows that go on."""
    inputs, recurrent, bias, *leaves = (z.detach() for z in arguments(cell, 0, 2, 4, 2, 3, torch.float32))
    inputs[:, :, 0] -= 200
    for leaf, value in zip(leaves, (0.0, 0.0, 0.0, empty), strict=True):
        leaf[0] = value
    hidden, state = call(cell, inputs, recurrent, bias, *leaves)
    fresh = call(cell, inputs[:1], recurrent, bias)
    assert_close([hidden[:1], *(leaf[:1] for leaf in state)], floating(fresh), 1e-6, "value")
    assert (hidden[0].abs() > 1e-3).all()


@forgets
def test_a_reset_row_takes_its_first_token_whole(cell):
    inputs, recurrent, bias, *leaves = (z.detach() for z in arguments(cell, 0, 2, 6, 2, 3, torch.float32))
    inputs[:, :, 0] -= 200
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[0, 3] = True
    hidden, state = call(cell, inputs, recurrent, bias, *leaves, reset=reset)
    fresh = call(cell, inputs[:1, 3:], recurrent, bias)
    assert_close([hidden[:1, 3:], *(leaf[:1] for leaf in state)], floating(fresh), 1e-6, "value")


@forgets
def test_an_input_gate_shut_for_good_is_a_token_that_is_not_there(cell):
    inputs, recurrent, bias = (z.detach() for z in arguments(cell, 0, 2, 5, 2, 3)[:3])
    inputs[:, :2, 0] = -INF
    inputs.requires_grad_()
    recurrent.requires_grad_()
    hidden, state = call(cell, inputs, recurrent, bias)
    assert not hidden[:, :2].any()
    assert_close([hidden[:, 2:], *state], floating(call(cell, inputs[:, 2:], recurrent, bias)), 1e-12, "value")
    assert_backends_agree(lambda: call(cell, inputs, recurrent, bias)[0], [inputs, recurrent])
    assert_backends_agree(lambda: call(cell, inputs[:, :2], recurrent, bias), [inputs, recurrent])


def test_nothing_was_read_at_first():
    state = init_cell_state("slstm", 2, 3, 4, like=torch.zeros(0, dtype=torch.bfloat16))
    assert isinstance(state, SLSTMState)
    assert all(leaf.shape == (2, 3, 4) and leaf.dtype == torch.float32 for leaf in state)
    assert not any(leaf.any() for leaf in state[:3])
    assert (state.stabiliser == -INF).all()


def test_gradients_at_a_tie_are_the_equations():
    """Equal arguments of the maximum: a constant input under the exponential forget gate."""
    tensors = [z.detach().zero_().requires_grad_() for z in arguments("slstm_exp", 0, 1, 4, 1, 2)]
    tensors[5].data.fill_(1)
    assert_backends_agree(lambda: call("slstm_exp", *tensors), tensors)


@forgets
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_gates_wide_open_and_shut_stay_finite(cell, size):
    inputs, recurrent, bias = arguments(cell, 0, 2, 9, 2, 3, torch.float32)[:3]
    found = call(cell, inputs * size, recurrent, bias)
    assert all(z.isfinite().all() for z in floating(found) + gradients(found, [inputs, recurrent, bias]))
    assert (found[0].abs() <= 1.000001).all()


def test_a_stabiliser_that_grows_loses_nothing():
    """Forget gates above 1 drive the stabiliser to 2e4, where float32 is 2e-3 apart; the outputs keep all digits."""
    inputs = normal(0, 2, 4000, 4, 1, 4, dtype=torch.float32).detach()
    inputs[:, :, :2] += torch.tensor([0.0, 5.0])[:, None, None]
    inputs[:, :, 0] += 5.0 * torch.arange(4000).view(1, -1, 1, 1)
    recurrent = torch.zeros(4, 1, 4, 4)
    found, _ = call("slstm_exp", inputs, recurrent, None)
    wanted, _ = call("slstm_exp", inputs.double(), recurrent.double(), None)
    assert_close([found], [wanted], 1e-4, "value")
