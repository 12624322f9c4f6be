from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agreement import assert_backends_agree, assert_close, few, floating, gradients, normal, resets
from cells import GATES, arguments, call
from seriatim.core.errors import SeriatimError
from seriatim.ops.cell_scan import HiddenState, LSTMState, cell_scan, init_cell_state

cells = pytest.mark.parametrize("cell", GATES)
torch_cells = pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])


@few
@given(
    cell=st.sampled_from(sorted(GATES)),
    batch=st.integers(0, 3),
    time=st.integers(0, 9),
    heads=st.integers(1, 3),
    dim=st.integers(1, 4),
    chance=st.sampled_from([None, 0.3, 1.0]),
    ragged=st.booleans(),
    starts=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_equations(cell, batch, time, heads, dim, chance, ragged, starts, biased, seed):
    inputs, recurrent, bias, *leaves = arguments(cell, seed, batch, time, heads, dim)
    reset = None if chance is None else resets(seed, batch, time, chance)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, time + 1, (batch,), generator=generator) if ragged else None
    given_leaves, offset = leaves if starts else [], bias if biased else None

    def run():
        return call(cell, inputs, recurrent, offset, *given_leaves, reset=reset, lengths=lengths)

    assert_backends_agree(run, [inputs, recurrent, bias, *leaves])


@torch_cells
def test_equals_torch(cell):
    torch.manual_seed(0)
    module = {"elman": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](5, 6, batch_first=True).double()
    tokens, gates = normal(0, 3, 7, 5), GATES[cell]
    leaves = [normal(i + 1, 3, 1, 6) for i in range(2 if cell == "lstm" else 1)]
    first = tuple(leaf.transpose(0, 1).contiguous() for leaf in leaves)
    o, last = module(tokens, first if cell == "lstm" else first[0])
    wanted = o, tuple(leaf.transpose(0, 1) for leaf in (last if cell == "lstm" else (last,)))
    inputs = (tokens @ module.weight_ih_l0.T + module.bias_ih_l0).view(3, 7, gates, 1, 6)
    recurrent, bias = module.weight_hh_l0.view(gates, 1, 6, 6), module.bias_hh_l0.view(gates, 1, 6)
    hidden, state = call(cell, inputs, recurrent, bias, *leaves)
    found = hidden.squeeze(2), tuple(state)
    assert_close(floating(found), floating(wanted), 1e-12, "value")
    needed = [tokens, *leaves, *module.parameters()]
    assert_close(gradients(found, needed), gradients(wanted, needed), 1e-10, "gradient")


@cells
def test_heads_are_blocks_of_one_matrix(cell):
    inputs, recurrent, bias, *leaves = arguments(cell, 0, 2, 6, 3, 4)
    gates = GATES[cell]
    whole = torch.stack([torch.block_diag(*blocks) for blocks in recurrent]).unsqueeze(1)
    flat = [
        inputs.reshape(2, 6, gates, 1, 12),
        whole,
        bias.reshape(gates, 1, 12),
        *(z.reshape(2, 1, 12) for z in leaves),
    ]
    found, wanted = call(cell, inputs, recurrent, bias, *leaves)[0].flatten(2), call(cell, *flat)[0].flatten(2)
    assert_close([found], [wanted], 1e-12, "value")
    needed = [inputs, recurrent, bias, *leaves]
    assert_close(gradients(found, needed), gradients(wanted, needed), 1e-11, "gradient")


@cells
@pytest.mark.parametrize("where", [[0], [4], [8], [3, 4], list(range(9))])
def test_reset_is_a_new_sequence(cell, where):
    inputs, recurrent, bias, *leaves = arguments(cell, 0, 2, 9, 2, 3)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[:, where] = True
    found = call(cell, inputs, recurrent, bias, *leaves, reset=reset)
    parts = []
    for start, stop in pairwise(sorted({0, *where, 9})):
        part, state = call(cell, inputs[:, start:stop], recurrent, bias, *([] if start in where else leaves))
        parts.append(part)
    wanted, needed = (torch.cat(parts, 1), state), [inputs, recurrent, bias, *leaves]
    assert_close(floating(found), floating(wanted), 1e-12, "value")
    assert_close(gradients(found, needed), gradients(wanted, needed), 1e-11, "gradient")


@cells
@pytest.mark.parametrize("cuts", [[1], [0, 4, 4, 8], [1, 2, 3, 4, 5, 6, 7, 8]])
def test_pieces_are_the_whole(cell, cuts):
    inputs, recurrent, bias, *leaves = arguments(cell, 0, 2, 9, 2, 3)
    reset = resets(0, 2, 9)
    whole = call(cell, inputs, recurrent, bias, *leaves, reset=reset)
    parts, state = [], leaves
    for start, stop in pairwise([0, *cuts, 9]):
        part, state = call(cell, inputs[:, start:stop], recurrent, bias, *state, reset=reset[:, start:stop])
        parts.append(part)
    pieces, needed = (torch.cat(parts, 1), state), [inputs, recurrent, bias, *leaves]
    assert_close(floating(pieces), floating(whole), 1e-12, "value")
    assert_close(gradients(pieces, needed), gradients(whole, needed), 1e-11, "gradient")


@cells
def test_the_state_stops_at_lengths(cell):
    inputs, recurrent, bias, *leaves = arguments(cell, 0, 4, 6, 2, 3)
    lengths = torch.tensor([0, 2, 5, 6])
    padded = inputs.detach().clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = float("nan")
    padded.requires_grad_()
    found = call(cell, padded, recurrent, bias, *leaves, lengths=lengths)
    rows = [
        call(cell, inputs[row : row + 1, :length], recurrent, bias, *(leaf[row : row + 1] for leaf in leaves))
        for row, length in enumerate(lengths)
    ]
    outs = [torch.nn.functional.pad(o, (0, 0, 0, 0, 0, 6 - o.size(1))) for o, _ in rows]
    wanted = torch.cat(outs), tuple(torch.cat(parts) for parts in zip(*(state for _, state in rows), strict=True))
    assert_close(floating(found), floating(wanted), 1e-12, "value")
    shared = [recurrent, bias, *leaves]
    assert_close(gradients(found, [padded, *shared]), gradients(wanted, [inputs, *shared]), 1e-11, "gradient")


@cells
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_lower_precision(cell, dtype, tolerance):
    inputs, recurrent, bias = arguments(cell, 0, 2, 12, 2, 3, dtype)[:3]
    assert_backends_agree(lambda: call(cell, inputs, recurrent, bias), [inputs, recurrent, bias], tolerance)
    hidden, state = call(cell, inputs, recurrent, bias)
    assert hidden.dtype == dtype
    assert all(leaf.dtype == torch.float32 for leaf in state)
    exact = [z.detach().double() for z in (inputs, recurrent, bias)]
    assert_close([hidden], [call(cell, *exact)[0]], tolerance, "value")


@cells
def test_finite_at_extremes(cell):
    inputs, recurrent, bias, *leaves = arguments(cell, 0, 1, 5, 1, 3)
    for size in (0.0, 1e-30, 1e4):
        found = call(cell, inputs * size, recurrent, bias, *leaves)
        assert all(z.isfinite().all() for z in floating(found) + gradients(found, [inputs, recurrent, bias, *leaves]))


@cells
def test_gradcheck(cell):
    tensors = arguments(cell, 0, 2, 4, 2, 2)
    reset, lengths = torch.tensor([[False, True, False, False], [False] * 4]), torch.tensor([3, 4])
    assert torch.autograd.gradcheck(lambda *z: floating(call(cell, *z, reset=reset, lengths=lengths)), tensors)


def test_a_second_derivative_is_refused():
    tensors = arguments("lstm", 0, 1, 3, 1, 2)
    with pytest.raises(SeriatimError, match="differentiated twice"):
        torch.autograd.grad(call("lstm", *tensors)[0].sum(), tensors, create_graph=True)


@cells
def test_the_state_given_is_left_alone(cell):
    inputs, recurrent, bias, *leaves = (z.detach() for z in arguments(cell, 0, 2, 5, 2, 3))
    copies = [leaf.clone() for leaf in leaves]
    for time in (0, 1, 5):
        call(cell, inputs[:, :time], recurrent, bias, *leaves)
        assert all(torch.equal(a, b) for a, b in zip(leaves, copies, strict=True))


@cells
def test_compiles_as_one_graph(cell):
    tensors = arguments(cell, 0, 2, 4, 2, 3)
    reset, lengths = resets(0, 2, 4), torch.tensor([2, 4])
    torch.compiler.reset()  # the other cells' graphs count towards its limit
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, wanted = (run(cell, *tensors, reset=reset, lengths=lengths) for run in (compiled, call))
    assert_close(floating(found), floating(wanted), 1e-12, "value")
    assert_close(gradients(found, tensors), gradients(wanted, tensors), 1e-11, "gradient")


def test_an_unknown_cell_is_refused():
    with pytest.raises(SeriatimError, match="cell is 'lstn'; it must be one of lstm"):
        cell_scan("lstn", torch.zeros(2, 5, 4, 1, 3), torch.zeros(4, 1, 3, 3))
    with pytest.raises(SeriatimError, match="cell is 'rnn'"):
        init_cell_state("rnn", 1, 1, 1, torch.zeros(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.zeros(2, 5, 3, 2, 3), "recurrent": torch.zeros(3, 2, 3, 3)}, "inputs has 3 gates"),
        ({"inputs": torch.zeros(2, 5, 4, 6)}, "inputs has shape"),
        ({"recurrent": torch.zeros(4, 2, 3, 4)}, "recurrent has shape"),
        ({"bias": torch.zeros(3, 2, 3)}, "bias has shape"),
        ({"state": HiddenState(torch.zeros(2, 2, 3))}, "state is a HiddenState; for cell 'lstm' it must be LSTMState"),
        ({"state": LSTMState(torch.zeros(2, 2, 3), torch.zeros(1, 2, 3))}, "state.cell has shape"),
        ({"reset": torch.zeros(2, 6, dtype=torch.bool)}, "reset has shape"),
        ({"lengths": torch.tensor([2.0, 3.0])}, "lengths has dtype"),
        ({"lengths": torch.tensor([2, 6])}, "lengths runs from 2 to 6"),
        ({"lengths": 3}, "lengths is 3"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    right = {"inputs": torch.zeros(2, 5, 4, 2, 3), "recurrent": torch.zeros(4, 2, 3, 3)}
    with pytest.raises(SeriatimError, match=message):
        cell_scan("lstm", **{**right, **change})
