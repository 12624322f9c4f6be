from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import (
    LAYOUTS,
    assert_compiles,
    assert_like_reference,
    assert_near,
    assert_safe_in_threads,
    assert_within_bounds,
    laid_out,
)

from agreement import few, gradients, normal, resets
from scans import saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.attention import _parts, block_of_keys
from seriatim.kernels.cpu.attention import attention as product
from seriatim.ops import backend
from seriatim.ops.attention import attention

op = import_module("seriatim.ops.attention")


@pytest.fixture(autouse=True)
def _compiled():
    with backend("cpu"):
        yield


@pytest.fixture
def always_compiled(monkeypatch):
    monkeypatch.setattr(op, "_worth_a_kernel", lambda q, window: True)


def tensors(seed, batch, time, groups, shared=1, keys=16, values=16, slots=0, layout="plain"):
    """q, k, v, and the keys and values carried."""
    shapes = [(batch, time, groups * shared, keys), (batch, time, groups, keys), (batch, time, groups, values),
              (batch, slots, groups, keys), (batch, slots, groups, values)]  # fmt: skip
    return [laid_out(normal(seed + i, *shape), layout) for i, shape in enumerate(shapes)]


def table(q, k, v, carried_keys, carried_values, until, reset, lengths, window):
    """Softmax of a table of all products, in the dtype of the inputs."""
    time, document = torch.arange(q.size(1)), torch.zeros(1, q.size(1), dtype=torch.int64)
    if reset is not None:
        document = reset.long().cumsum(1)
    apart = time[:, None] - time
    seen = (apart >= 0) & (apart < (window or q.size(1))) & (document[:, :, None] == document[:, None])
    carried = (time[:, None] < until[:, None]) & (document == 0)[:, :, None]
    seen = torch.cat([carried, seen.expand(q.size(0), -1, -1)], 2)[:, None]
    keys, values = (torch.cat(z, 1).repeat_interleave(q.size(2) // k.size(2), 2)
                    for z in ([carried_keys, k], [carried_values, v]))  # fmt: skip
    scores = torch.einsum("bthk,bshk->bhts", q, keys) * q.size(3) ** -0.5
    out = torch.einsum("bhts,bshv->bthv", scores.masked_fill(~seen, -torch.inf).softmax(-1), values)
    return out if lengths is None else out.masked_fill((time >= lengths[:, None])[..., None, None], 0)


def assert_like_table(inputs, until, reset=None, lengths=None, window=None):
    """Values and gradients of the kernel are those of the table in float64."""
    high = [z.detach().double().requires_grad_() for z in inputs]
    found, wanted = (run(*z, until, reset, lengths, window) for run, z in ((product, inputs), (table, high)))
    assert_near([found], [wanted], 2e-6, "value")
    # Where a query sees one key alone, gradients are 0 but for the rounding of numbers near 1.
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient", least=0.5)


@few
@given(
    batch=st.integers(0, 2),
    time=st.sampled_from([1, 2, 15, 63, 64, 65, 130, 200]),
    groups=st.integers(1, 2),
    shared=st.integers(1, 2),
    keys=st.sampled_from([1, 4, 16, 33]),
    values=st.sampled_from([1, 16, 70]),
    slots=st.sampled_from([0, 1, 20, 150]),
    window=st.sampled_from([None, 2, 20, 64, 100]),
    chance=st.sampled_from([None, 0.01, 0.3, 1.0]),
    padded=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_equals_a_table_of_weights(
    batch, time, groups, shared, keys, values, slots, window, chance, padded, layout, seed
):
    inputs = tensors(seed, batch, time, groups, shared, keys, values, slots, layout)
    generator = torch.Generator().manual_seed(seed)
    until = torch.randint(0, min(time, window or time) + 1, (batch, slots), generator=generator)
    reset = None if chance is None else resets(seed, batch, time, chance)
    lengths = torch.randint(0, time + 1, (batch,), generator=generator) if padded else None
    assert_like_table(inputs, until, reset, lengths, window)


@pytest.mark.parametrize(("time", "window"), [(1500, None), (1500, 700), (3000, 64)])
def test_several_blocks_of_keys(time, window):
    inputs = tensors(0, 1, time, 1, keys=8, values=8, slots=block_of_keys(8, 8) + 70)
    until = torch.randint(0, window or time, inputs[3].shape[:2])
    assert_like_table(inputs, until, resets(0, 1, time, 0.002), None, window)


def test_long():
    inputs = tensors(0, 1, 8192, 1, keys=4, values=4)[:3]
    high = [z.detach().double().requires_grad_() for z in inputs]
    nothing, everything = torch.zeros(1, 0, dtype=torch.int64), torch.full((1, 8092), 100)
    found = product(*inputs, inputs[1][:, :0], inputs[2][:, :0], nothing, None, None, None)[:, -100:]
    last = [z[:, -100:] for z in high]
    wanted = table(*last, high[1][:, :-100], high[2][:, :-100], everything, None, None, None)
    assert_near([found], [wanted], 2e-6, "value")
    assert_near(gradients(found, inputs), gradients(wanted, high), 2e-6, "gradient")


@pytest.mark.parametrize("window", [None, 5, 70])
@pytest.mark.parametrize("before", [None, 9, 80])
@pytest.mark.usefixtures("always_compiled")
def test_the_op_agrees_with_the_reference(window, before):
    time, state = 130, None
    if before is not None:
        with torch.no_grad():
            state = attention(*tensors(5, 2, before, 2, 2)[:3], window=window, reset=resets(5, 2, before, 0.02))[1]
    reset, lengths = resets(0, 2, time, 0.02), torch.tensor([time, 77])

    def run(q, k, v, *carried):
        given = None if state is None else state._replace(keys=carried[0], values=carried[1])
        return attention(q, k, v, window=window, state=given, reset=reset, lengths=lengths)

    carried = [] if state is None else [z.clone().requires_grad_() for z in (state.keys, state.values)]
    assert_like_reference("attention", run, [*tensors(0, 2, time, 2, 2)[:3], *carried])


@pytest.mark.parametrize("window", [None, 100])
def test_equals_the_library(window):
    q, k, v, *_ = tensors(0, 2, 300, 4, keys=32, values=32)
    time = torch.arange(300)
    apart = time[:, None] - time
    mask = (apart >= 0) & (apart < (window or 300))
    wanted = F.scaled_dot_product_attention(*(z.transpose(1, 2) for z in (q, k, v)), attn_mask=mask).transpose(1, 2)
    found = attention(q, k, v, window=window)[0]
    assert found.grad_fn.name() == "GeneratedBackwardFor_seriatim_cpu_attention_defaultBackward"
    assert_near([found], [wanted], 2e-6, "value")
    assert_near(gradients(found, [q, k, v]), gradients(wanted, [q, k, v]), 4e-6, "gradient")


@pytest.mark.parametrize("size", [1e-4, 30.0, 1e4])
def test_scores_of_any_size(size):
    q, k, v, *carried = (z.detach() for z in tensors(0, 1, 130, 1))
    inputs = [z.requires_grad_() for z in (size * q, k, v, *carried)]
    high = [z.detach().double().requires_grad_() for z in inputs]
    nothing = torch.zeros(1, 0, dtype=torch.int64)
    found, wanted = (run(*z, nothing, None, None, 70) for run, z in ((product, inputs), (table, high)))
    assert_near([found], [wanted], 2e-6 * max(size, 1), "value")  # a score of 1e4 is known to 1e-3
    assert all(gradient.isfinite().all() for gradient in gradients(found, inputs))


@pytest.mark.parametrize(("time", "window"), [(1, None), (70, None), (150, 33)])
def test_stays_within_its_arrays(time, window):
    until, reset, lengths = torch.full((2, 9), 3), resets(0, 2, time, 0.03), torch.tensor([time, time // 2])

    def run(*z):
        return (product(*z, until, reset, lengths, window), ())

    assert_within_bounds(run, tensors(0, 2, time, 2, 2, keys=5, values=17, slots=9))


@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.usefixtures("always_compiled")
def test_compiles_as_one_graph(window):
    reset, lengths = resets(0, 2, 130, 0.02), torch.tensor([130, 70])

    def run(q, k, v):
        return attention(q, k, v, window=window, reset=reset, lengths=lengths)

    assert_compiles(run, tensors(0, 2, 130, 2, 2)[:3])


def test_threads():
    def run(q, k, v):
        return attention(q, k, v, window=100)

    assert_safe_in_threads(run, tensors(0, 2, 400, 2, 2)[:3])


def test_threads_share_the_queries_of_few_heads():
    inputs, nothing = tensors(0, 1, 400, 1, shared=3, slots=9), torch.full((1, 9), 50)
    assert _parts(1, 21, threads=4) == 4
    assert _parts(3, 21, threads=4) == 2
    assert _parts(8, 21, threads=4) == _parts(0, 0, threads=4) == 1
    torch.set_num_threads(4)
    try:
        assert_like_table(inputs, nothing, resets(0, 1, 400, 0.01), torch.tensor([390]), 100)
    finally:
        torch.set_num_threads(1)


def test_keeps_no_table():
    inputs = tensors(0, 1, 1024, 2)
    until = torch.zeros(1, 0, dtype=torch.int64)
    kept = saved_bytes(lambda *z: product(*z, until, None, None, None), inputs)
    assert kept == 4 * 1024 * 2 * (16 + 2)  # the output, and two numbers a query


def test_half_precision_and_few_scores_are_left_to_the_library():
    q, k, v, *_ = tensors(0, 2, 300, 4)
    for inputs in ([z.bfloat16() for z in (q, k, v)], [z[:, :60] for z in (q, k, v)], [z[:1, :100] for z in (q, k, v)]):
        found = attention(*inputs, window=50)[0]
        assert found.dtype == inputs[0].dtype
        assert "seriatim" not in found.grad_fn.name()


def test_second_derivatives_are_refused():
    q, k, v, *_ = tensors(0, 2, 300, 4)
    with backend("cpu"), pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
        torch.autograd.grad(attention(q, k, v)[0].square().sum(), q, create_graph=True)


def test_blocks_of_keys_fit_the_second_cache():
    assert block_of_keys(64, 64) >= block_of_keys(1024, 1024) >= 64
