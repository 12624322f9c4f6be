from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agreement import assert_backends_agree, assert_close, few, floating, gradients, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops.softmax_scan import SoftmaxState, init_softmax_state, softmax_scan


def carried(seed, batch, heads, dim, dtype=torch.float64):
    """A state as after some tokens."""
    total = normal(seed + 1, batch, heads).detach().abs().add(1).to(dtype).requires_grad_()
    return SoftmaxState(
        normal(seed, batch, heads, dtype=dtype), total, normal(seed + 2, batch, heads, dim, dtype=dtype)
    )


def direct(scores, values):
    """Softmax over each prefix, as a table of T x T weights."""
    hidden = torch.ones(scores.size(1), scores.size(1)).triu(1).bool()
    table = scores.transpose(1, 2)[:, :, None].masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", table, values)


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 70),
    heads=st.integers(1, 3),
    dim=st.integers(1, 4),
    chance=st.sampled_from([None, 0.05, 0.5, 1.0]),
    starts=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(batch, time, heads, dim, chance, starts, seed):
    scores, values = normal(seed, batch, time, heads), normal(seed + 1, batch, time, heads, dim)
    state = carried(seed + 2, batch, heads, dim) if starts else None
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [scores, values, *(state or [])]
    assert_backends_agree(lambda: softmax_scan(scores * 4, values, state=state, reset=reset), inputs)


@pytest.mark.parametrize("time", [1, 31, 32, 33, 64, 2100])
def test_equals_a_table_of_weights(time):
    scores, values = normal(0, 2, time, 2), normal(1, 2, time, 2, 3)
    found, wanted = softmax_scan(scores, values)[0], direct(scores, values)
    assert_close([found], [wanted], 1e-12, "value")
    assert_close(gradients(found, [scores, values]), gradients(wanted, [scores, values]), 1e-11, "gradient")


@pytest.mark.parametrize("where", [[0], [0, 1], [32], [63], [31, 32, 33], [69], list(range(70))])
def test_reset_is_a_new_sequence(where):
    scores, values, state = normal(0, 1, 70, 2), normal(1, 1, 70, 2, 3), carried(2, 1, 2, 3)
    reset = torch.zeros(1, 70, dtype=torch.bool)
    reset[:, where] = True
    o, final = softmax_scan(scores, values, state=state, reset=reset)
    parts, edges = [], [0, *where, 70]
    for start, stop in pairwise(edges):
        part, last = softmax_scan(
            scores[:, start:stop], values[:, start:stop], state=state if start not in where else None
        )
        parts.append(part)
    whole, inputs = (torch.cat(parts, 1), last), [scores, values, *state]
    assert_close(floating((o, final)), floating(whole), 1e-12, "value")
    assert_close(gradients((o, final), inputs), gradients(whole, inputs), 1e-11, "gradient")


@few
@given(cuts=st.lists(st.integers(0, 75), max_size=5), seed=st.integers(0, 1000), chance=st.sampled_from([0.0, 0.1]))
def test_pieces_are_the_whole(cuts, seed, chance):
    scores, values, reset = normal(seed, 2, 75, 2), normal(seed + 1, 2, 75, 2, 3), resets(seed, 2, 75, chance)
    whole = softmax_scan(scores * 5, values, reset=reset)
    parts, state, edges = [], None, sorted([0, *cuts, 75])
    for start, stop in pairwise(edges):
        here = slice(start, stop)
        o, state = softmax_scan(scores[:, here] * 5, values[:, here], state=state, reset=reset[:, here])
        parts.append(o)
    pieces = torch.cat(parts, 1), state
    assert_close(floating(pieces), floating(whole), 1e-12, "value")
    inputs = [scores, values]
    assert_close(gradients(pieces, inputs), gradients(whole, inputs), 1e-10, "gradient")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_any_size(dtype):
    spread = torch.linspace(-1e4, 1e4, 100)[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    scores = spread[None, :, None].to(dtype).requires_grad_()
    values = normal(1, 1, 100, 1, 3, dtype=dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert_backends_agree(lambda: softmax_scan(scores, values), [scores, values], tolerance)
    o, state = softmax_scan(scores, values)
    assert o.dtype == dtype
    assert all(leaf.dtype == torch.float32 for leaf in state)


def test_a_token_with_score_minus_infinity_is_not_there():
    scores, values = normal(0, 2, 40, 2), normal(1, 2, 40, 2, 3)
    gone = resets(3, 2, 40, 0.5)
    gone[0, :35] = gone[1, :] = True
    reset = torch.zeros(2, 40, dtype=torch.bool)
    reset[0, 10] = True

    def run():
        return softmax_scan(scores.masked_fill(gone[..., None], float("-inf")), values, reset=reset)

    o, state = run()
    assert (o[0, :35] == 0).all()
    assert (o[1] == 0).all()
    assert (state.maximum[1] == float("-inf")).all()
    assert_backends_agree(lambda: run()[0], [scores, values])
    left = ~gone[0]
    assert_close([o[:1, left]], [softmax_scan(scores[:1, left], values[:1, left])[0]], 1e-12, "value")


def test_no_gradient_is_lost_or_nan_after_a_stretch_without_tokens():
    values = normal(0, 1, 3, 1, 2)
    scores = torch.full((1, 3, 1), float("-inf"), dtype=torch.float64, requires_grad=True)
    state = softmax_scan(scores, values)[1]
    o, last = softmax_scan(normal(1, 1, 4, 1), normal(2, 1, 4, 1, 2), state=state)
    for gradient in gradients((o, last), [scores, values]):
        assert (gradient == 0).all()


def test_the_state_is_right_for_gradcheck():
    state = carried(0, 1, 2, 2)
    reset = torch.tensor([[False, False, True, False, False]])
    for begins in (None, reset):
        assert torch.autograd.gradcheck(
            lambda s, v, *leaves, r=begins: floating(softmax_scan(s, v, state=SoftmaxState(*leaves), reset=r)),
            (normal(3, 1, 5, 2), normal(4, 1, 5, 2, 2), *state),
        )


def test_causal_by_gradient():
    scores, values = normal(0, 1, 70, 1), normal(1, 1, 70, 1, 2)
    for gradient in torch.autograd.grad(softmax_scan(scores, values)[0][:, 40].sum(), [scores, values]):
        assert (gradient[:, 41:] == 0).all()
        assert (gradient[:, :41] != 0).all()


def test_the_state_given_is_left_alone():
    state = SoftmaxState(*(leaf.detach() for leaf in carried(0, 2, 2, 3)))
    copies = [leaf.clone() for leaf in state]
    for time in (0, 1, 40):
        softmax_scan(normal(1, 2, time, 2), normal(2, 2, time, 2, 3), state=state)
        assert all(torch.equal(a, b) for a, b in zip(state, copies, strict=True))


def test_compiles_as_one_graph():
    compiled = torch.compile(softmax_scan, fullgraph=True, backend="aot_eager")
    scores, values, reset = normal(0, 2, 40, 2), normal(1, 2, 40, 2, 3), resets(0, 2, 40)
    state = init_softmax_state(2, 2, 3, like=values)
    found, wanted = (op(scores, values, state=state, reset=reset) for op in (compiled, softmax_scan))
    assert_close(floating(found), floating(wanted), 1e-12, "value")
    assert_close(gradients(found, [scores, values]), gradients(wanted, [scores, values]), 1e-11, "gradient")


def test_autocast_does_not_lower_the_precision():
    scores, values = normal(0, 1, 40, 1, dtype=torch.float32), normal(1, 1, 40, 1, 3, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = softmax_scan(scores, values)[0]
    assert_close([found], [softmax_scan(scores, values)[0]], 1e-6, "value")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.zeros(2, 5, 4)}, "scores has shape"),
        ({"values": torch.zeros(2, 5, 3)}, "values has shape"),
        ({"values": torch.zeros(2, 5, 3, 4, dtype=torch.int64)}, "values has dtype"),
        ({"reset": torch.zeros(2, 5)}, "reset has dtype"),
        ({"reset": torch.zeros(2, 4, dtype=torch.bool)}, "reset has shape"),
        ({"state": torch.zeros(2, 3)}, "state is a Tensor"),
        (
            {"state": SoftmaxState(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3, 5))},
            "state.weighted has shape",
        ),
        (
            {"state": SoftmaxState(torch.zeros(1, 3), torch.zeros(2, 3), torch.zeros(2, 3, 4))},
            "state.maximum has shape",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = {"scores": torch.zeros(2, 5, 3), "values": torch.zeros(2, 5, 3, 4), **change}
    with pytest.raises(SeriatimError, match=message):
        softmax_scan(**arguments)
