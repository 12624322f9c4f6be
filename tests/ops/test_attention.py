from importlib import import_module
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agreement import assert_backends_agree, assert_close, few, floating, gradients, normal, resets
from seriatim.core import ragged, state
from seriatim.core.errors import SeriatimError
from seriatim.ops.attention import (
    AttentionState,
    WindowState,
    attention,
    init_attention_state,
    init_window_state,
)

windows = pytest.mark.parametrize("window", [None, 1, 4, 100])


def tokens(seed, batch, time, heads=2, groups=1, key_dim=3, value_dim=2, dtype=torch.float64):
    """q, k, v."""
    return [
        normal(seed, batch, time, heads, key_dim, dtype=dtype),
        normal(seed + 1, batch, time, groups, key_dim, dtype=dtype),
        normal(seed + 2, batch, time, groups, value_dim, dtype=dtype),
    ]


def read(seed, batch, time, window, **shape):
    """A state after some tokens, with leaves that want their gradients."""
    with torch.no_grad():
        qkv = tokens(seed, batch, time, **shape)
        after = attention(*qkv, window=window, reset=resets(seed, batch, time, 0.1))[1]
    return after._replace(keys=after.keys.requires_grad_(), values=after.values.requires_grad_())


def table(q, k, v, window=None, reset=None, causal=True):
    """Softmax of a table of T x T products."""
    k, v = (z.repeat_interleave(q.size(2) // z.size(2), 2) for z in (k, v))
    time = torch.arange(q.size(1))
    seen = (time[:, None] >= time) if causal else torch.ones(len(time), len(time), dtype=torch.bool)
    if window is not None:
        seen = seen & (time[:, None] - time < window)
    if reset is not None:
        document = reset.cumsum(1)
        seen = seen & (document[:, :, None] == document[:, None])[:, None]
    products = torch.einsum("bthk,bshk->bhts", q, k) * q.size(3) ** -0.5
    return torch.einsum("bhts,bshv->bthv", products.masked_fill(~seen, float("-inf")).softmax(-1), v)


def assert_same_future(found, wanted, window, tolerance=1e-12):
    """Two states answer the next tokens alike."""
    batch, groups, key_dim = found.keys.size(0), found.keys.size(2), found.keys.size(3)
    qkv = tokens(77, batch, 5, groups, groups, key_dim, found.values.size(3), dtype=found.keys.dtype)
    answers = [attention(*qkv, window=window, state=z)[0] for z in (found, wanted)]
    assert_close(answers[:1], answers[1:], tolerance, "next output")
    assert torch.equal(found.length, wanted.length)


@few
@given(
    batch=st.integers(0, 2),
    time=st.integers(0, 14),
    groups=st.integers(1, 2),
    shared=st.integers(1, 2),
    window=st.sampled_from([None, 1, 2, 5, 14, 20]),
    causal=st.booleans(),
    chance=st.sampled_from([None, 0.2, 1.0]),
    padded=st.booleans(),
    before=st.sampled_from([None, 0, 1, 9]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_list_of_visible_tokens(
    batch, time, groups, shared, window, causal, chance, padded, before, seed
):
    qkv = tokens(seed, batch, time, groups * shared, groups)
    window, carried = (window, None) if causal else (None, None)
    if causal and before is not None:
        carried = read(seed + 3, batch, before, window, heads=groups * shared, groups=groups)
    reset = None if chance is None else resets(seed, batch, time, chance)
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, time + 1, (batch,), generator=generator) if padded else None

    def run():
        return attention(*qkv, causal=causal, window=window, state=carried, reset=reset, lengths=lengths)

    assert_backends_agree(run, [*qkv, *(floating(carried) if carried else [])])


@pytest.mark.parametrize("chance", [None, 0.02, 0.5])
@pytest.mark.parametrize(("window", "time"), [(None, 70), (1, 150), (5, 300), (64, 200), (70, 500), (150, 130)])
def test_equals_a_table_of_weights(window, time, chance, monkeypatch):
    monkeypatch.setattr(import_module("seriatim.ops.masked_attention"), "_STRIDE", 128)  # several strides of blocks
    qkv = tokens(0, 2, time)
    reset = None if chance is None else resets(0, 2, time, chance)
    found, wanted = attention(*qkv, window=window, reset=reset)[0], table(*qkv, window, reset)
    assert_close([found], [wanted], 1e-12, "value")
    assert_close(gradients(found, qkv), gradients(wanted, qkv), 1e-11, "gradient")


@pytest.mark.parametrize("chance", [None, 0.1])
def test_both_sides_equal_a_table_of_weights(chance):
    qkv = tokens(0, 2, 40)
    reset = None if chance is None else resets(0, 2, 40, chance)
    (found, after), wanted = attention(*qkv, causal=False, reset=reset), table(*qkv, reset=reset, causal=False)
    assert after == ()
    assert_close([found], [wanted], 1e-12, "value")
    assert_close(gradients(found, qkv), gradients(wanted, qkv), 1e-11, "gradient")


@windows
@pytest.mark.parametrize("where", [[0], [0, 1], [40], [79], [3, 4, 5], [70, 79], list(range(80))])
def test_reset_is_a_new_sequence(window, where):
    qkv, carried = tokens(0, 1, 80), read(5, 1, 6, window)
    reset = torch.zeros(1, 80, dtype=torch.bool)
    reset[:, where] = True
    o, after = attention(*qkv, window=window, state=carried, reset=reset)
    parts = []
    for start, stop in pairwise(sorted({0, *where, 80})):
        first = None if start in where else carried
        part, last = attention(*(z[:, start:stop] for z in qkv), window=window, state=first)
        parts.append(part)
    inputs = [*qkv, carried.keys, carried.values]
    assert_close([o], [torch.cat(parts, 1)], 1e-12, "value")
    assert_close(gradients(o, inputs), gradients(torch.cat(parts, 1), inputs), 1e-11, "gradient")
    assert_same_future(after, last, window)


@windows
@pytest.mark.parametrize("chance", [None, 0.1])
@pytest.mark.parametrize("cuts", [[1], [0, 30, 30, 31, 100], list(range(1, 20))])
def test_pieces_are_the_whole(window, chance, cuts):
    qkv, carried = tokens(0, 2, 110), read(5, 2, 6, window)
    reset = resets(3, 2, 110, chance or 0.0)
    o, after = attention(*qkv, window=window, state=carried, reset=reset)
    parts, last = [], carried
    for start, stop in pairwise([0, *cuts, 110]):
        here = slice(start, stop)
        now = None if chance is None else reset[:, here]
        part, last = attention(*(z[:, here] for z in qkv), window=window, state=last, reset=now)
        parts.append(part)
    inputs = [*qkv, carried.keys, carried.values]
    assert_close([torch.cat(parts, 1)], [o], 1e-12, "value")
    assert_close(gradients(torch.cat(parts, 1), inputs), gradients(o, inputs), 1e-11, "gradient")
    assert_same_future(last, after, window)
    assert torch.equal(last.position, after.position)
    if window is not None:
        assert_close(floating(last), floating(after), 1e-12, "state")


@windows
def test_the_state_stops_at_lengths(window):
    qkv, carried, lengths = tokens(0, 4, 70), read(5, 4, 6, window), torch.tensor([0, 1, 40, 70])
    reset = resets(1, 4, 70, 0.1)
    real = ragged.real_tokens(lengths, 70)
    padded = [ragged.mask(z.detach(), real, float("nan")).requires_grad_() for z in qkv]
    o, after = attention(*padded, window=window, state=carried, reset=reset, lengths=lengths)
    rows, states = [], []
    for row, length in enumerate(lengths):
        here = slice(row, row + 1)
        own = state.take(carried, torch.tensor([row]))
        part, last = attention(*(z[here, :length] for z in qkv), window=window, state=own, reset=reset[here, :length])
        rows.append(torch.nn.functional.pad(part, (0, 0, 0, 0, 0, 70 - length)))
        states.append(last)
    shared = [carried.keys, carried.values]
    assert_close([o], [torch.cat(rows)], 1e-12, "value")
    found, wanted = gradients(o, [*padded, *shared]), gradients(torch.cat(rows), [*qkv, *shared])
    assert_close(found, wanted, 1e-11, "gradient")
    assert_same_future(after, state.join(states), window)


def test_lengths_without_causality():
    qkv, lengths, reset = tokens(0, 3, 9), torch.tensor([0, 4, 9]), resets(2, 3, 9, 0.3)
    padded = [ragged.mask(z.detach(), ragged.real_tokens(lengths, 9), float("nan")).requires_grad_() for z in qkv]
    o, _ = attention(*padded, causal=False, reset=reset, lengths=lengths)
    for row, length in enumerate(lengths):
        alone = attention(*(z[row : row + 1, :length] for z in qkv), causal=False, reset=reset[row : row + 1, :length])[
            0
        ]
        assert_close([o[row : row + 1, :length]], [alone], 1e-12, "value")
        assert (o[row, length:] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients(o, padded))


@windows
def test_a_state_of_another_growth_is_the_same(window):
    """Rows whose caches have different numbers of slots go on together as they would alone."""
    carried = [read(seed, 1, time, window) for seed, time in ((0, 3), (10, 11))]
    qkv = tokens(20, 2, 4)
    together = attention(*qkv, window=window, state=state.join(carried))[0]
    alone = [
        attention(*(z[row : row + 1] for z in qkv), window=window, state=own)[0] for row, own in enumerate(carried)
    ]
    assert_close([together], [torch.cat(alone)], 1e-12, "value")


@pytest.mark.parametrize("time", [7, 90])
def test_the_ring_holds_the_last_tokens(time):
    q, k, v = tokens(0, 1, time)
    _, ring = attention(q, k, v, window=5)
    assert ring.keys.shape == (1, 5, 1, 3)
    for position in range(time - 5, time):
        assert ring.position[0, position % 5] == position
        assert torch.equal(ring.keys[0, position % 5], k[0, position])
        assert torch.equal(ring.values[0, position % 5], v[0, position])


def test_the_cache_has_a_slot_for_every_token():
    q, k, v = tokens(0, 2, 4)
    reset, lengths = torch.tensor([[False, False, True, False]] * 2), torch.tensor([4, 1])
    _, cache = attention(q, k, v, reset=reset, lengths=lengths)
    assert cache.position.tolist() == [[-1, -1, 0, 1], [0, -1, -1, -1]]
    assert cache.length.tolist() == [2, 1]
    assert torch.equal(cache.keys[0], k[0])


@windows
def test_the_state_tells_where_the_document_stands(window):
    after, count = None, 0
    for time in (3, 1, 0, 80):
        reset = torch.zeros(2, time, dtype=torch.bool)
        if time == 80:
            reset[1, 70] = True
        _, after = attention(*tokens(0, 2, time), window=window, state=after, reset=reset)
        count += time
        assert after.length.tolist() == [count, 10 if time == 80 else count]


@windows
def test_sees_the_window_by_gradient(window):
    q, k, v = tokens(0, 1, 150)
    size, at = window or 150, 120
    o, _ = attention(q, k, v, window=window)
    for gradient in torch.autograd.grad(o[:, at].sum(), [k, v]):
        reached = (gradient != 0).flatten(2).any(2)[0].nonzero().flatten()
        # with one visible token the softmax is 1 whatever its key
        assert reached.tolist() in ([*range(max(0, at - size + 1), at + 1)], [] if size == 1 else None)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@windows
def test_lower_precision(window, dtype, tolerance):
    qkv = tokens(0, 2, 90, 4, 2, 8, 8, dtype=dtype)
    reset = resets(0, 2, 90, 0.02)
    (o, after), exact = attention(*qkv, window=window, reset=reset), table(*(z.double() for z in qkv), window, reset)
    assert o.dtype == dtype
    assert after.keys.dtype == after.values.dtype == torch.float32
    assert_close([o], [exact], tolerance, "value")
    assert_close(gradients(o, qkv), gradients(exact, qkv), 2 * tolerance, "gradient")
    next_token = tokens(1, 2, 1, 4, 2, 8, 8, dtype=dtype)
    found = attention(*next_token, window=window, state=after)[0]
    assert found.dtype == dtype
    wide = after._replace(keys=after.keys.double(), values=after.values.double())
    wanted = attention(*(z.double() for z in next_token), window=window, state=wide)[0]
    assert_close([found], [wanted], tolerance, "next output")


@windows
def test_finite_at_extremes(window):
    for size in (0.0, 1e-30, 1e4):
        q, k, v = tokens(0, 1, 80, dtype=torch.float32)
        o, after = attention(q * size, k * size, v * size, window=window, reset=resets(0, 1, 80))
        assert all(z.isfinite().all() for z in [o, *floating(after), *gradients(o, [q, k, v])])


@windows
def test_the_state_given_is_left_alone(window):
    carried = state.detach(read(0, 2, 6, window))
    copies = [leaf.clone() for _, leaf in state.leaves(carried)]
    for time in (0, 1, 80):
        reset = resets(0, 2, time)
        attention(*tokens(1, 2, time), window=window, state=carried, reset=reset)
        attention(*tokens(1, 2, time), window=window, state=carried)
        assert all(torch.equal(a, b) for (_, a), b in zip(state.leaves(carried), copies, strict=True))


@pytest.mark.parametrize(("window", "causal"), [(None, True), (4, True), (None, False)])
def test_compiles_as_one_graph(window, causal):
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    carried = read(5, 2, 6, window) if causal else None
    for time, padded in ((70, True), (1, False)):
        qkv, options = tokens(0, 2, time), {"causal": causal, "window": window, "state": carried}
        options["reset"] = resets(0, 2, time)
        options["lengths"] = torch.tensor([30, 70]) if padded else None
        found, wanted = compiled(*qkv, **options), attention(*qkv, **options)
        assert_close(floating(found), floating(wanted), 1e-12, "value")
        assert_close(gradients(found, qkv), gradients(wanted, qkv), 1e-11, "gradient")


@pytest.mark.parametrize("window", [None, 4])
def test_exports(window):
    class Step(torch.nn.Module):
        def forward(self, q, k, v, keys, values, position, length):
            kind = AttentionState if window is None else WindowState
            return attention(q, k, v, window=window, state=kind(keys, values, position, length))

    arguments = (*(z.detach() for z in tokens(0, 1, 1)), *state.detach(read(5, 1, 6, window)))
    found, wanted = torch.export.export(Step(), arguments).module()(*arguments), Step()(*arguments)
    assert_close(floating(found), floating(wanted), 1e-12, "value")


def test_autocast_keeps_the_state_whole():
    qkv = tokens(0, 1, 9, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        o, after = attention(*qkv)
        step, _ = attention(*(z[:, :1] for z in qkv), state=after)
    assert o.dtype == step.dtype == torch.float32
    assert torch.equal(after.keys, qkv[1])
    assert_close([o], [attention(*qkv)[0]], 3e-2, "value")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 4)}, "q has shape"),
        ({"q": torch.zeros(2, 5, 3, 3)}, "q has 3 heads; it must be a multiple of the 2 heads of k"),
        ({"k": torch.zeros(2, 5, 2, 4)}, "k has shape"),
        ({"v": torch.zeros(2, 5, 1, 2)}, "v has shape"),
        ({"v": torch.zeros(2, 5, 2, 2, dtype=torch.int64)}, "v has dtype"),
        ({"window": 0}, "window is 0"),
        ({"window": 2.0}, "window is 2.0"),
        ({"window": 2, "causal": False}, "window is 2 with causal=False"),
        ({"reset": torch.zeros(2, 5)}, "reset has dtype"),
        ({"lengths": torch.tensor([1, 9])}, "lengths runs from 1 to 9"),
        ({"state": torch.zeros(2, 3)}, "state is a Tensor"),
        ({"state": init_window_state(2, 4, 2, 3, 2, torch.zeros(1))}, "state is a WindowState"),
        ({"state": init_attention_state(2, 2, 3, 2, torch.zeros(1)), "window": 4}, "it must be WindowState"),
        ({"state": init_attention_state(2, 2, 3, 2, torch.zeros(1)), "causal": False}, r"it must be \(\) or None"),
        ({"state": init_window_state(2, 3, 2, 3, 2, torch.zeros(1)), "window": 4}, "state.keys has 3 slots"),
        ({"state": init_attention_state(1, 2, 3, 2, torch.zeros(1))}, "state.keys has shape"),
        (
            {"state": init_attention_state(2, 2, 3, 2, torch.zeros(1))._replace(length=torch.zeros(2))},
            "state.length is torch.float32",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    right = {"q": torch.zeros(2, 5, 4, 3), "k": torch.zeros(2, 5, 2, 3), "v": torch.zeros(2, 5, 2, 2)}
    with pytest.raises(SeriatimError, match=message):
        attention(**{**right, **change})


@pytest.mark.parametrize("window", [None, 5])
def test_a_state_keeps_nothing_else_in_memory(window):
    q, k, v = torch.randn(3, 2, 300, 1, 4)
    _, state = attention(q, k, v, window=window)
    for leaf in state:
        assert leaf.untyped_storage().nbytes() == leaf.numel() * leaf.element_size()
