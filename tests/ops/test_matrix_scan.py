import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, floating, gradients, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops import backend
from seriatim.ops.matrix_scan import matrix_scan

KINDS = ["none", "head", "key"]
EXTREMES = [0.0, -1e-3, -0.7, -50.0, -1e4, float("-inf"), 0.5]
TIMES = [0, 1, 2, 7, 31, 32, 33, 64, 65, 100]


def arguments(kind, seed, batch, time, heads=2, keys=3, values=2):
    """q, k, v and, for a kind with decay, log_decay: random leaves."""
    tensors = [normal(seed + index, batch, time, heads, size) for index, size in enumerate((keys, keys, values))]
    if kind == "none":
        return tensors
    shape = (batch, time, heads) if kind == "head" else (batch, time, heads, keys)
    return [*tensors, (-normal(seed + 3, *shape).abs()).detach().requires_grad_()]


def extreme(kind, seed, batch, time, heads=2, keys=3):
    """Log decays of all sizes."""
    shape = (batch, time, heads) if kind == "head" else (batch, time, heads, keys)
    drawn = torch.randint(len(EXTREMES), shape, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(EXTREMES, dtype=torch.float64)[drawn].requires_grad_()


@pytest.mark.parametrize("kind", KINDS)
@few
@given(
    batch=st.integers(0, 2),
    time=st.sampled_from(TIMES),
    heads=st.integers(1, 2),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    chance=st.sampled_from([None, 0.05, 0.5, 1.0]),
    starts=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(kind, batch, time, heads, sizes, chance, starts, scale, seed):
    tensors = arguments(kind, seed, batch, time, heads, *sizes)
    state = normal(seed + 5, batch, heads, *sizes) if starts else None
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [*tensors, *([state] if starts else [])]
    assert_backends_agree(lambda: matrix_scan(*tensors, scale=scale, state=state, reset=reset), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 70])
def test_heads_of_a_group_share_queries_and_keys(kind, time):
    q, k, *rest = arguments(kind, 0, 2, time, heads=6)
    inputs = [q[:, :, :2].detach().requires_grad_(), k[:, :, :2].detach().requires_grad_(), *rest]
    assert_backends_agree(lambda: matrix_scan(*inputs), inputs)
    apart = [z.repeat_interleave(3, 2) for z in inputs[:2]]
    assert_close(floating(matrix_scan(*inputs)), floating(matrix_scan(*apart, *rest)), 1e-12, "value")


@pytest.mark.parametrize("kind", ["head", "key"])
@few
@given(time=st.sampled_from(TIMES), reset=st.booleans(), seed=st.integers(0, 1000))
def test_agrees_at_any_decay(kind, time, reset, seed):
    q, k, v = arguments("none", seed, 2, time)
    log_decay, state = extreme(kind, seed, 2, time), normal(seed + 5, 2, 2, 3, 2)
    begins = resets(seed, 2, time) if reset else None
    inputs = [q, k, v, log_decay, state]
    assert_backends_agree(lambda: matrix_scan(q, k, v, log_decay, state=state, reset=begins), inputs)


@pytest.mark.parametrize("kind", ["head", "key"])
@pytest.mark.parametrize("size", EXTREMES[:-1])
def test_the_same_decay_at_every_token_in_single_precision(kind, size):
    tensors = arguments(kind, 0, 1, 100)
    tensors[3] = torch.full_like(tensors[3], size).requires_grad_()
    state = normal(5, 1, 2, 3, 2)
    scans.assert_rounds_well(lambda *z: matrix_scan(*z[:-1], state=z[-1]), [*tensors, state], torch.float32, 3e-6)


@pytest.mark.parametrize("kind", ["head", "key"])
def test_a_decay_is_as_exact_after_strong_ones(kind):
    """A difference of running sums would lose the small decays that follow on sums of -20,000."""
    tensors = [z.detach().float() for z in arguments(kind, 0, 1, 64)]
    tensors[3] = tensors[3] * 0.1
    tensors[3][:, :20] = -1e3
    found = matrix_scan(*tensors)[0]
    with backend("reference"):
        wanted = matrix_scan(*(z.double() for z in tensors))[0]
    assert_close([found[:, 20:]], [wanted[:, 20:]], 1e-6, "value")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
def test_lower_precision(kind, dtype, tolerance):
    tensors = [*arguments(kind, 0, 2, 100, keys=8, values=8), normal(5, 2, 2, 8, 8)]
    scans.assert_rounds_well(lambda *z: matrix_scan(*z[:-1], state=z[-1]), tensors, dtype, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [[], [0], [0, 1], [31, 32], [5, 40, 41, 42], [99], list(range(100))])
def test_reset_is_a_new_sequence(kind, where):
    scans.assert_reset_begins_anew(matrix_scan, arguments(kind, 0, 2, 100), normal(5, 2, 2, 3, 2), where)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_is_its_pieces(kind):
    scans.assert_pieces_agree(matrix_scan, arguments(kind, 0, 2, 100), normal(5, 2, 2, 3, 2), resets(1, 2, 100, 0.03))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 70])
def test_compiles_as_one_graph(kind, time):
    reset = resets(0, 2, time)
    scans.assert_compiles(
        lambda *z: matrix_scan(*z[:-1], state=z[-1], reset=reset), [*arguments(kind, 0, 2, time), normal(5, 2, 2, 3, 2)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_strides_do_not_matter(kind):
    scans.assert_strides_do_not_matter(matrix_scan, arguments(kind, 0, 2, 40))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_gradients(kind):
    tensors = [*arguments(kind, 0, 1, 5, 1, 2, 1), normal(5, 1, 1, 2, 1)]
    assert torch.autograd.gradgradcheck(lambda *z: matrix_scan(*z[:-1], state=z[-1]), tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_with_time_and_no_faster(kind):
    half, whole = (scans.saved_bytes(matrix_scan, arguments(kind, 0, 1, time)) for time in (512, 1024))
    assert whole < 2.1 * half


def test_the_state_holds_no_more_than_itself():
    state = matrix_scan(*arguments("key", 0, 2, 100))[1]
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_autocast_does_not_lower_the_precision():
    tensors = [z.detach().float() for z in arguments("key", 0, 2, 40)]
    with torch.autocast("cpu", torch.bfloat16):
        found = matrix_scan(*tensors)
    assert_close(floating(found), floating(matrix_scan(*tensors)), 1e-7, "value")


def test_mixed_dtypes_are_computed_in_the_widest():
    q, k, v, log_decay = (z.detach() for z in arguments("key", 0, 2, 10))
    o, state = matrix_scan(q.bfloat16(), k.bfloat16(), v.bfloat16(), log_decay)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float64)


def test_no_heads_and_no_features():
    empty = torch.zeros(2, 40, 0, 3)
    assert matrix_scan(empty, empty, empty, empty)[0].shape == (2, 40, 0, 3)
    tensors = arguments("key", 0, 2, 40, 2, 0, 3)
    assert not matrix_scan(*tensors)[0].any()
    assert gradients(matrix_scan(*tensors), tensors)[2].shape == (2, 40, 2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 6)}, r"q has shape \(2, 5, 6\); it must be \(batch, time, groups, keys\)"),
        ({"q": [1.0]}, r"q is \[1.0\]; it must be a tensor"),
        ({"k": torch.zeros(2, 5, 2, 4)}, r"k has shape \(2, 5, 2, 4\); it must be .* = \(2, 5, 2, 3\)"),
        ({"v": torch.zeros(2, 6, 2, 2)}, r"v has shape \(2, 6, 2, 2\); it must be .* = \(2, 5, heads, values\)"),
        ({"v": torch.zeros(2, 5, 3, 2)}, "heads is 3 and groups is 2; heads must be a multiple of groups"),
        ({"v": torch.zeros(2, 5, 2, 2, dtype=torch.int64)}, "v has dtype torch.int64; it must be floating"),
        ({"v": torch.zeros(2, 5, 2, 2, dtype=torch.complex64)}, "v has dtype torch.complex64; it must be floating"),
        ({"v": torch.zeros(2, 5, 2, 2, device="meta")}, "v is on meta; it must be on cpu, where q is"),
        ({"log_decay": torch.zeros(2, 5, 3)}, r"log_decay has shape \(2, 5, 3\); it must be .* = \(2, 5, 2\)"),
        ({"log_decay": torch.zeros(2, 5, 2, 1)}, r"log_decay has shape .* = \(2, 5, 2, 3\)"),
        ({"log_decay": 0.5}, "log_decay is 0.5; it must be a tensor"),
        ({"state": torch.zeros(2, 2, 2, 3)}, r"state has shape \(2, 2, 2, 3\); it must be .* = \(2, 2, 3, 2\)"),
        ({"reset": torch.zeros(2, 5)}, "reset has dtype torch.float32; it must be torch.bool"),
        ({"reset": torch.zeros(2, 4, dtype=torch.bool)}, r"reset has shape \(2, 4\); it must be .* = \(2, 5\)"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    good = {"q": torch.zeros(2, 5, 2, 3), "k": torch.zeros(2, 5, 2, 3), "v": torch.zeros(2, 5, 2, 2)}
    with pytest.raises(SeriatimError, match=message):
        matrix_scan(**{**good, **change})
