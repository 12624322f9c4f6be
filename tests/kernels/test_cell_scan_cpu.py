"""The compiled cells against the same in float64: values and all gradients, for any shape, resets, padding, strides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agreement import assert_close, few, floating, gradients, resets
from cells import GATES, arguments, call
from scans import assert_near, saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu import cell_scan as kernels
from seriatim.kernels.cpu.caches import Caches
from seriatim.kernels.cpu.guard import guarded
from seriatim.ops import backend

cells = pytest.mark.parametrize("cell", GATES)


def tensors(cell, seed, batch, time, heads, dim):
    """Arguments in float32, the recurrent matrices of a size that neither forgets nor explodes."""
    found = [z.detach() for z in arguments(cell, seed, batch, time, heads, dim)]
    found[1] *= 0.7 * dim**-0.5
    return [z.float().requires_grad_() for z in found]


def assert_right(cell, low, tolerance=2e-6, **options):
    """Values and all gradients are those of float64. The state of the exponential forget gate counts without its gauge,
    which grows without bound."""
    high = [z.detach().double().requires_grad_() for z in low]
    found = call(cell, *low, **options)
    with backend("torch"):
        wanted = call(cell, *high, **options)
    if cell == "slstm_exp":
        found, wanted = ((hidden, state.hidden, state.cell / state.normaliser) for hidden, state in (found, wanted))
    for a, b in zip(floating(found), floating(wanted), strict=True):
        assert_near(a, b, tolerance)
    for a, b in zip(gradients(found, low), gradients(wanted, high), strict=True):
        assert_near(a, b, tolerance)


@few
@given(
    cell=st.sampled_from(sorted(GATES)),
    batch=st.integers(1, 20),
    time=st.integers(1, 40),
    heads=st.integers(1, 3),
    dim=st.integers(1, 70),
    chance=st.sampled_from([None, 0.1, 1.0]),
    ragged=st.booleans(),
    starts=st.booleans(),
    biased=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_float64(cell, batch, time, heads, dim, chance, ragged, starts, biased, seed):
    inputs, recurrent, bias, *leaves = tensors(cell, seed, batch, time, heads, dim)
    generator = torch.Generator().manual_seed(seed)
    options = {
        "reset": None if chance is None else resets(seed, batch, time, chance),
        "lengths": torch.randint(0, time + 1, (batch,), generator=generator) if ragged else None,
    }
    # Without a bias or a state the tensors that stand for them are left out, and their gradients are 0 on both sides.
    if not biased:
        call_without_bias(cell, inputs, recurrent, leaves if starts else [], options)
    else:
        assert_right(cell, [inputs, recurrent, bias, *(leaves if starts else [])], **options)


def call_without_bias(cell, inputs, recurrent, leaves, options):
    zero = torch.zeros(recurrent.shape[:3])
    found = call(cell, inputs, recurrent, None, *leaves, **options)
    wanted = call(cell, inputs, recurrent, zero, *leaves, **options)
    assert_close(floating(found), floating(wanted), 1e-6, "value")
    needed = [inputs, recurrent, *leaves]
    assert_close(gradients(found, needed), gradients(wanted, needed), 1e-5, "gradient")


@cells
@pytest.mark.parametrize("batch", range(1, 18))
def test_any_number_of_rows(cell, batch):
    assert_right(cell, tensors(cell, batch, batch, 3, 1, 33))


@cells
@pytest.mark.parametrize("dim", [1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65, 80, 96, 100])
def test_any_width(cell, dim):
    assert_right(cell, tensors(cell, dim, 3, 4, 1, dim))


@cells
def test_large_matrices(cell):
    assert_right(cell, tensors(cell, 0, 5, 20, 1, 256))


@pytest.mark.parametrize(
    ("cell", "time", "tolerance"),
    [
        ("elman", 8192, 2e-6),
        ("lstm", 8192, 2e-6),
        ("gru", 8192, 2e-6),
        ("slstm", 8192, 2e-6),
        ("slstm_exp", 2000, 5e-6),
    ],
)
def test_a_long_sequence(cell, time, tolerance):
    """Where forget gates above 1 let the stabiliser wander, float32 loses more, with PyTorch's operations too."""
    low = tensors(cell, 0, 2, time, 1, 5)[:3]
    assert_right(cell, low, tolerance, reset=resets(0, 2, time, 0.001))


@cells
def test_gates_wide_open_and_shut(cell):
    inputs, *rest = tensors(cell, 0, 3, 30, 2, 17)[:3]
    for size in (0.0, 1e-30, 30.0):
        assert_right(cell, [(inputs.detach() * size).requires_grad_(), *rest], 1e-5)
    found = call(cell, inputs * 1e4, *rest)
    assert all(z.isfinite().all() for z in floating(found) + gradients(found, [inputs, *rest]))
    assert (found[0].abs() <= 1.000001).all()


@cells
def test_strides_do_not_matter(cell):
    low = tensors(cell, 0, 3, 7, 2, 5)
    strange = [z.detach().transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for z in low]
    assert not any(z.is_contiguous() for z in strange)
    reset = torch.zeros(7, 3, dtype=torch.bool).T
    assert_right(cell, strange, reset=reset)
    expanded = [z[:1].detach().expand(z.shape).requires_grad_() for z in low]
    assert_right(cell, expanded, reset=torch.zeros(1, 1, dtype=torch.bool).expand(3, 7))
    seen = call(cell, *low)[0]
    for grad in (torch.ones(()).expand(seen.shape), torch.randn(seen.shape[::-1]).permute(3, 2, 1, 0)):
        found = torch.autograd.grad(seen, low, grad, retain_graph=True)
        assert_close(found, torch.autograd.grad(seen, low, grad.clone(), retain_graph=True), 0, "gradient")


@cells
def test_what_the_padding_holds_is_never_read(cell):
    inputs, *rest = tensors(cell, 0, 9, 30, 2, 5)
    lengths = torch.tensor([0, 1, 30, 17, 16, 15, 29, 2, 0])
    padded = inputs.detach().clone()
    for row, length in enumerate(lengths):
        padded[row, length:] = float("nan")
    padded.requires_grad_()
    found, wanted = call(cell, padded, *rest, lengths=lengths), call(cell, inputs, *rest, lengths=lengths)
    assert_close(floating(found), floating(wanted), 0, "value")
    assert_close(gradients(found, [padded, *rest]), gradients(wanted, [inputs, *rest]), 0, "gradient")
    assert not found[0][0].any()


@cells
def test_nothing_that_wants_a_gradient_computes_the_same(cell):
    low = tensors(cell, 0, 9, 20, 2, 18)
    wanted = call(cell, *low)
    with torch.no_grad():
        found = call(cell, *low)
    assert_close(floating(found), floating(wanted), 0, "value")
    assert not any(z.requires_grad for z in floating(found))


@cells
def test_some_gradients_are_not_asked_for(cell):
    low = tensors(cell, 0, 3, 9, 2, 18)
    wanted = gradients(call(cell, *low), low)
    for index, z in enumerate(low):
        alone = [y if y is z else y.detach() for y in low]
        assert_close(gradients(call(cell, *alone), [z]), [wanted[index]], 0, "gradient")


@cells
@pytest.mark.parametrize("heads", [1, 3])
def test_threads_divide_the_work(cell, heads):
    low = tensors(cell, 0, 11, 20, heads, 18)
    found = call(cell, *low)
    found = found, gradients(found, low)
    torch.set_num_threads(2)
    try:
        wanted = call(cell, *low)
        wanted = wanted, gradients(wanted, low)
    finally:
        torch.set_num_threads(1)
    assert_close(floating(found[0]), floating(wanted[0]), 0, "value")
    assert_close(found[1], wanted[1], 1e-5, "gradient")


@cells
def test_the_number_of_threads_may_change_before_the_backward_pass(cell):
    low = tensors(cell, 0, 11, 20, 1, 18)
    wanted, found = gradients(call(cell, *low), low), call(cell, *low)
    torch.set_num_threads(2)
    try:
        assert_close(gradients(found, low), wanted, 1e-5, "gradient")
    finally:
        torch.set_num_threads(1)


@cells
def test_the_backward_pass_keeps_gates_in_the_place_of_inputs(cell):
    """Beside the gates, the outputs and the arguments: a state for every chunk of tokens."""
    batch, time, heads, dim = 4, 400, 2, 16
    low = tensors(cell, 0, batch, time, heads, dim)
    state = 4 * batch * heads * dim
    slots = {"gru": 4}.get(cell, GATES[cell])
    count = {"elman": 1, "lstm": 2, "gru": 1}.get(cell, 4)
    chunks = -(-time // kernels.chunk(cell, dim))
    kept = saved_bytes(lambda *z: call(cell, *z), low)
    assert kept <= state * (time * (slots + 1) + (chunks + 2) * count)


@cells
@pytest.mark.parametrize("mode", ["after", "before"])
def test_nothing_out_of_bounds_is_touched(cell, mode):
    """A read or write beside an array would end this process."""
    for batch, heads, dim in ((9, 2, 5), (3, 1, 33)):
        low = tensors(cell, 0, batch, 18, heads, dim)
        lengths = torch.arange(batch) * 2
        with guarded(mode):
            gradients(call(cell, *low, reset=resets(0, batch, 18), lengths=lengths), low)


@cells
def test_half_precision_is_computed_in_float32(cell):
    low = [z.detach().bfloat16() for z in tensors(cell, 0, 2, 30, 2, 9)[:3]]
    hidden, state = call(cell, *low)
    wanted, last = call(cell, *(z.float() for z in low))
    assert hidden.dtype == torch.bfloat16
    assert torch.equal(hidden, wanted.bfloat16())
    assert_close(state, last, 0, "state")


@cells
def test_compiles_as_one_graph(cell):
    low = tensors(cell, 0, 2, 20, 2, 3)
    options = {"reset": resets(0, 2, 20), "lengths": torch.tensor([2, 20])}
    torch.compiler.reset()  # the other cells' graphs count towards its limit
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    found, wanted = (run(cell, *low, **options) for run in (compiled, call))
    assert_close(floating(found), floating(wanted), 0, "value")
    assert_close(gradients(found, low), gradients(wanted, low), 0, "gradient")


def test_exports_as_one_node_for_any_batch_and_time():
    class Layer(torch.nn.Module):
        def forward(self, x, recurrent):
            return call("gru", x, recurrent, None)[0]

    inputs, recurrent = (z.detach() for z in tensors("gru", 0, 3, 5, 2, 4)[:2])
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time")}
    program = torch.export.export(Layer(), (inputs, recurrent), dynamic_shapes=(free, None))
    assert sum("cpu_cell_scan" in str(node.target) for node in program.graph.nodes) == 1
    longer = tensors("gru", 1, 7, 50, 2, 4)[0].detach()
    assert torch.equal(program.module()(longer, recurrent), call("gru", longer, recurrent, None)[0])


def test_the_operators_describe_themselves_rightly():
    inputs, recurrent, bias, *leaves = tensors("gru", 0, 2, 5, 2, 3)
    for keep, biased in ((True, bias), (False, None)):
        given = ("gru", inputs, recurrent, biased, torch.stack(leaves), None, None, keep)
        given = given if keep else tuple(z.detach() if isinstance(z, torch.Tensor) else z for z in given)
        torch.library.opcheck(kernels.forward, given, test_utils=("test_schema", "test_faketensor"))
    out, _, kept, borders = kernels.forward("gru", inputs, recurrent, bias, torch.stack(leaves), None, None, True)
    given = ("gru", out.detach(), None, recurrent.detach(), out.detach(), kept, borders, None, None, True)
    torch.library.opcheck(kernels.backward, given, test_utils=("test_schema", "test_faketensor"))


def test_what_is_not_supported_is_said():
    low = tensors("lstm", 0, 2, 5, 2, 3)
    with pytest.raises(SeriatimError, match="no second derivatives"):
        torch.autograd.grad(call("lstm", *low)[0].sum(), low, create_graph=True)
    with pytest.raises(SeriatimError, match="no rule for vmap"):
        torch.vmap(lambda x: call("lstm", x, *low[1:])[0])(torch.zeros(3, *low[0].shape))


@pytest.fixture(params=[Caches(32 << 10, 256 << 10), Caches(48 << 10, 2 << 20)])
def caches(request, monkeypatch):
    """Another machine's caches."""
    plans = kernels.row_block, kernels.chunk
    for plan in plans:
        plan.cache_clear()
    monkeypatch.setattr(kernels, "caches", lambda: request.param)
    yield request.param
    for plan in plans:
        plan.cache_clear()


@cells
@pytest.mark.parametrize("dim", [1, 16, 64, 256, 1000])
def test_blocks_fit_the_caches(cell, dim, caches):
    sizes, wide = kernels._CELLS[cell], -(-dim // 16) * 16
    rows, tokens = kernels.row_block(cell, dim), kernels.chunk(cell, dim)
    resident = 4 * sizes.slots * dim * wide <= caches.second
    of_step = 4 * rows * wide * (sizes.slots + 2 * sizes.states)
    assert rows == 8 or of_step <= (caches.first if resident else caches.second)
    assert tokens == 4 or 4 * rows * wide * tokens * (sizes.slots + sizes.states) <= caches.second


@pytest.mark.parametrize(
    ("batch", "heads", "threads"), [(1, 1, 2), (8, 1, 2), (9, 1, 4), (8, 4, 2), (70, 1, 1), (5, 3, 64)]
)
def test_items_keep_all_threads_busy(batch, heads, threads):
    rows = kernels.rows_of_item("lstm", batch, heads, 64, threads)
    items = heads * -(-batch // rows)
    assert 1 <= rows <= kernels.row_block("lstm", 64)
    assert rows <= -(-batch // -(-threads // heads))
    assert items <= heads * batch
