import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, floating, gradients, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops import backend, delta_scan, matrix_scan
from seriatim.ops.dplr_scan import dplr_scan

EXTREMES = [0.0, -1e-3, -0.7, -50.0, -1e4, float("-inf"), 0.1]
TIMES = [0, 1, 2, 7, 31, 32, 33, 64, 65, 100]


def arguments(seed, batch, time, heads=2, keys=3, values=2, rate=1.0):
    """q, k, v, log_decay, read and write: random leaves. What is read is of length 1, and written is its opposite, each
    feature at a rate of its own from 0 to `rate`."""
    shapes = [keys, keys, values, keys, keys, keys]
    q, k, v, g, r, a = (normal(seed + i, batch, time, heads, size).detach() for i, size in enumerate(shapes))
    r = torch.nn.functional.normalize(r, dim=-1)
    return [z.requires_grad_() for z in (q, k, v, -g.abs(), r, -rate * a.sigmoid() * r)]


def state_for(seed, batch, heads=2, keys=3, values=2):
    return normal(seed + 9, batch, heads, keys, values)


@few
@given(
    batch=st.integers(0, 2),
    time=st.sampled_from(TIMES),
    heads=st.integers(1, 2),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    rate=st.sampled_from([0.0, 0.3, 1.0, 1.5]),
    chance=st.sampled_from([None, 0.05, 0.5, 1.0]),
    starts=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(batch, time, heads, sizes, rate, chance, starts, scale, seed):
    tensors = arguments(seed, batch, time, heads, *sizes, rate)
    state = state_for(seed, batch, heads, *sizes) if starts else None
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [*tensors, *([state] if starts else [])]
    assert_backends_agree(lambda: dplr_scan(*tensors, scale=scale, state=state, reset=reset), inputs)


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("begins", [None, False, True])
def test_a_token_or_two_after_a_state(time, begins):
    tensors, state = arguments(0, 2, time), state_for(0, 2)
    reset = None if begins is None else torch.tensor([[begins], [False]]).expand(2, time)
    assert_backends_agree(lambda: dplr_scan(*tensors, scale=0.3, state=state, reset=reset), [*tensors, state])


@few
@given(time=st.sampled_from(TIMES), reset=st.booleans(), seed=st.integers(0, 1000))
def test_agrees_at_any_decay(time, reset, seed):
    tensors, state = arguments(seed, 2, time, rate=0.3), state_for(seed, 2)
    drawn = torch.randint(len(EXTREMES), tensors[3].shape, generator=torch.Generator().manual_seed(seed))
    tensors[3] = torch.tensor(EXTREMES, dtype=torch.float64)[drawn].requires_grad_()
    begins = resets(seed, 2, time) if reset else None
    assert_backends_agree(lambda: dplr_scan(*tensors, state=state, reset=begins), [*tensors, state])


def test_a_transition_under_which_the_memory_grows():
    """One direction grows by a tenth with every token, in the recurrence as well."""
    tensors = arguments(0, 1, 100)
    tensors[3] = torch.full_like(tensors[3], -0.01).requires_grad_()
    tensors[4] = tensors[4][:, :1].detach().expand_as(tensors[4]).clone().requires_grad_()
    tensors[5] = (0.1 * tensors[4]).detach().requires_grad_()
    with backend("reference"):
        assert dplr_scan(*tensors)[1].abs().max() > 1e3
    assert_backends_agree(lambda: dplr_scan(*tensors), tensors)


@pytest.mark.parametrize("rate", [0.0, 1.0, 2.0])
def test_the_same_key_again_and_again(rate):
    """The system is then as far from the identity as it can be."""
    tensors = arguments(0, 1, 100)
    tensors[4] = tensors[4][:, :1].detach().expand_as(tensors[4]).clone().requires_grad_()
    tensors[5] = (-rate * tensors[4]).detach().requires_grad_()
    assert_backends_agree(lambda: dplr_scan(*tensors), tensors)


def test_with_one_key_it_is_the_delta_rule():
    q, k, v, g, _, _ = (z.detach() for z in arguments(0, 2, 70))
    beta = torch.rand(2, 70, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state, reset = state_for(0, 2), resets(0, 2, 70, 0.05)
    weak = beta.unsqueeze(-1)
    found = dplr_scan(q, k, weak * v, g, -weak * g.exp() * k, k, scale=0.3, state=state, reset=reset)
    assert_close(found, delta_scan(q, k, v, beta, g, scale=0.3, state=state, reset=reset), 1e-10, "value")


def test_where_nothing_is_read_the_memory_only_fades():
    q, k, v, g, read, write = (z.detach() for z in arguments(0, 2, 70))
    wanted = matrix_scan(q, k, v, g)
    assert_close(dplr_scan(q, k, v, g, torch.zeros_like(read), write), wanted, 1e-11, "value")
    assert_close(dplr_scan(q, k, v, g, read, torch.zeros_like(write)), wanted, 1e-11, "value")


@pytest.mark.parametrize("size", EXTREMES[:-1])
def test_the_same_decay_at_every_token_in_single_precision(size):
    tensors, state = arguments(0, 1, 100), state_for(0, 1)
    tensors[3] = torch.full_like(tensors[3], size).requires_grad_()
    scans.assert_rounds_well(lambda *z: dplr_scan(*z[:-1], state=z[-1]), [*tensors, state], torch.float32, 3e-6)


def test_a_gradient_in_a_decay_is_as_exact_among_large_ones():
    """A difference of running sums over the tokens would lose the gradients of decays that fade almost everything."""
    tensors = arguments(0, 1, 64, rate=0.1)
    strong = torch.arange(64).view(1, 64, 1, 1) % 8 == 0
    tensors[3] = torch.where(strong, -60.0, tensors[3]).detach().requires_grad_()
    tensors[5] = torch.where(strong, 0.0, tensors[5]).detach().requires_grad_()
    found = gradients(dplr_scan(*tensors), tensors)[3][:, 8::8]
    with backend("reference"):
        wanted = gradients(dplr_scan(*tensors), tensors)[3][:, 8::8]
    assert wanted.abs().max() < 1e-20
    assert_close([found / wanted.abs().max()], [wanted / wanted.abs().max()], 1e-9, "gradient")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
def test_lower_precision(dtype, tolerance):
    tensors = [*arguments(0, 2, 100, keys=8, values=8), state_for(0, 2, 2, 8, 8)]
    scans.assert_rounds_well(lambda *z: dplr_scan(*z[:-1], state=z[-1]), tensors, dtype, tolerance)


@pytest.mark.parametrize("where", [[], [0], [0, 1], [31, 32], [5, 40, 41, 42], [99], list(range(100))])
def test_reset_is_a_new_sequence(where):
    scans.assert_reset_begins_anew(dplr_scan, arguments(0, 2, 100), state_for(0, 2), where)


def test_the_whole_is_its_pieces():
    scans.assert_pieces_agree(dplr_scan, arguments(0, 2, 100), state_for(0, 2), resets(1, 2, 100, 0.03))


@pytest.mark.parametrize("time", [1, 70])
def test_compiles_as_one_graph(time):
    reset = resets(0, 2, time)
    scans.assert_compiles(
        lambda *z: dplr_scan(*z[:-1], state=z[-1], reset=reset), [*arguments(0, 2, time), state_for(0, 2)]
    )


def test_the_operator_is_registered_whole():
    """Fakes of the right shapes and strides, nothing changed in place, gradients through the compiler."""
    *tensors, read, write = arguments(0, 2, 40)
    inputs = (*tensors, state_for(0, 2), None, read, write, 16)
    torch.library.opcheck(torch.ops.seriatim.delta_scan.default, inputs)


def test_strides_do_not_matter():
    scans.assert_strides_do_not_matter(dplr_scan, arguments(0, 2, 40))


@pytest.mark.parametrize("time", [1, 5])
def test_gradients_of_gradients(time):
    tensors = [*arguments(0, 1, time, 1, 2, 1), state_for(0, 1, 1, 2, 1)]
    assert torch.autograd.gradgradcheck(lambda *z: dplr_scan(*z[:-1], state=z[-1]), tensors)


def test_states_are_kept_once_a_chunk():
    """Beside the inputs: a state of 16 x 16 for 32 tokens. What is inside the chunks is computed again."""
    kept = scans.saved_bytes(dplr_scan, arguments(0, 1, 1024, 1, 16, 16))
    assert kept < 1.2 * (1024 / 32) * 16 * 16 * 8


def test_autocast_does_not_lower_the_precision():
    tensors = [z.detach().float() for z in arguments(0, 2, 40)]
    with torch.autocast("cpu", torch.bfloat16):
        found = dplr_scan(*tensors)
    assert_close(floating(found), floating(dplr_scan(*tensors)), 1e-7, "value")


def test_mixed_dtypes_are_computed_in_the_widest():
    q, k, v, log_decay, read, write = (z.detach() for z in arguments(0, 2, 10))
    half = [z.bfloat16() for z in (read, write)]
    o, state = dplr_scan(q.bfloat16(), k.bfloat16(), v.bfloat16(), log_decay, *half)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float64)


@pytest.mark.parametrize(
    "sizes", [(0, 40, 2, 3, 2), (2, 40, 0, 3, 2), (2, 40, 2, 0, 3), (2, 40, 2, 3, 0), (2, 0, 2, 3, 2)]
)
def test_sizes_of_none(sizes):
    tensors, state = arguments(0, *sizes), state_for(0, sizes[0], *sizes[2:])
    assert_backends_agree(lambda: dplr_scan(*tensors, state=state), [*tensors, state])


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
