import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, floating, gradients, normal, resets
from seriatim.core.errors import SeriatimError
from seriatim.ops import backend
from seriatim.ops.delta_scan import delta_scan

KINDS = ["none", "head", "key"]
EXTREMES = [0.0, -1e-3, -0.7, -50.0, -1e4, float("-inf"), 0.1]
TIMES = [0, 1, 2, 7, 31, 32, 33, 64, 65, 100]


def arguments(kind, seed, batch, time, heads=2, keys=3, values=2, length=1.0):
    """q, k, v, beta and, for a kind with decay, log_decay: random leaves; keys of that length, beta from 0 to 2."""
    q, k, v = (normal(seed + index, batch, time, heads, size) for index, size in enumerate((keys, keys, values)))
    k = (length * torch.nn.functional.normalize(k, dim=-1)).detach().requires_grad_()
    beta = (2 * normal(seed + 4, batch, time, heads).sigmoid()).detach().requires_grad_()
    if kind == "none":
        return [q, k, v, beta]
    shape = (batch, time, heads) if kind == "head" else (batch, time, heads, keys)
    return [q, k, v, beta, (-normal(seed + 3, *shape).abs()).detach().requires_grad_()]


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
    length=st.sampled_from([0.0, 0.3, 1.0, 1.2]),
    chance=st.sampled_from([None, 0.05, 0.5, 1.0]),
    starts=st.booleans(),
    scale=st.sampled_from([1.0, 0.3]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(kind, batch, time, heads, sizes, length, chance, starts, scale, seed):
    tensors = arguments(kind, seed, batch, time, heads, *sizes, length)
    state = normal(seed + 5, batch, heads, *sizes) if starts else None
    reset = None if chance is None else resets(seed, batch, time, chance)
    inputs = [*tensors, *([state] if starts else [])]
    assert_backends_agree(lambda: delta_scan(*tensors, scale=scale, state=state, reset=reset), inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("begins", [None, False, True])
def test_a_token_or_two_after_a_state(kind, time, begins):
    tensors = [*arguments(kind, 0, 2, time), normal(5, 2, 2, 3, 2)]
    reset = None if begins is None else torch.tensor([[begins], [False]]).expand(2, time)
    assert_backends_agree(lambda: delta_scan(*tensors[:-1], scale=0.3, state=tensors[-1], reset=reset), tensors)


@pytest.mark.parametrize("kind", ["head", "key"])
@few
@given(time=st.sampled_from(TIMES), reset=st.booleans(), seed=st.integers(0, 1000))
def test_agrees_at_any_decay(kind, time, reset, seed):
    tensors = [*arguments("none", seed, 2, time), extreme(kind, seed, 2, time)]
    state, begins = normal(seed + 5, 2, 2, 3, 2), resets(seed, 2, time) if reset else None
    assert_backends_agree(lambda: delta_scan(*tensors, state=state, reset=begins), [*tensors, state])


@pytest.mark.parametrize("kind", KINDS)
def test_keys_so_long_that_the_memory_grows(kind):
    """Each write overshoots by half: the state is some 1e10 at the end, in the recurrence as well."""
    tensors = arguments(kind, 0, 1, 80, length=1.3)
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
    tensors = arguments(kind, 0, 1, 100)
    tensors[1] = tensors[1][:, :1].detach().expand_as(tensors[1]).clone().requires_grad_()
    tensors[3] = torch.full_like(tensors[3], beta).requires_grad_()
    assert_backends_agree(lambda: delta_scan(*tensors), tensors)


@pytest.mark.parametrize("kind", ["head", "key"])
@pytest.mark.parametrize("size", EXTREMES[:-1])
def test_the_same_decay_at_every_token_in_single_precision(kind, size):
    tensors = arguments(kind, 0, 1, 100)
    tensors[4] = torch.full_like(tensors[4], size).requires_grad_()
    state = normal(5, 1, 2, 3, 2)
    scans.assert_rounds_well(lambda *z: delta_scan(*z[:-1], state=z[-1]), [*tensors, state], torch.float32, 3e-6)


@pytest.mark.parametrize("kind", ["head", "key"])
def test_a_decay_is_as_exact_after_strong_ones(kind):
    """A difference of running sums would lose the small decays that follow on sums of -20,000."""
    tensors = [z.detach().float() for z in arguments(kind, 0, 1, 64)]
    tensors[4] = tensors[4] * 0.1
    tensors[4][:, :20] = -1e3
    found = delta_scan(*tensors)[0]
    with backend("reference"):
        wanted = delta_scan(*(z.double() for z in tensors))[0]
    assert_close([found[:, 20:]], [wanted[:, 20:]], 1e-6, "value")


@pytest.mark.parametrize("kind", ["head", "key"])
def test_a_gradient_in_a_decay_is_as_exact_among_large_ones(kind):
    """A difference of running sums over the tokens would lose the gradients of decays that fade almost everything."""
    tensors = arguments(kind, 0, 1, 64)
    tensors[4] = torch.where(torch.arange(64).view(1, 64, *[1] * (tensors[4].dim() - 2)) % 8 == 0, -60.0, tensors[4])
    tensors[4] = tensors[4].detach().requires_grad_()
    found = gradients(delta_scan(*tensors), tensors)[4][:, 8::8]
    with backend("reference"):
        wanted = gradients(delta_scan(*tensors), tensors)[4][:, 8::8]
    assert wanted.abs().max() < 1e-20
    assert_close([found / wanted.abs().max()], [wanted / wanted.abs().max()], 1e-9, "gradient")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 6e-3)])
def test_lower_precision(kind, dtype, tolerance):
    tensors = [*arguments(kind, 0, 2, 100, keys=8, values=8), normal(5, 2, 2, 8, 8)]
    scans.assert_rounds_well(lambda *z: delta_scan(*z[:-1], state=z[-1]), tensors, dtype, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", [[], [0], [0, 1], [31, 32], [5, 40, 41, 42], [99], list(range(100))])
def test_reset_is_a_new_sequence(kind, where):
    scans.assert_reset_begins_anew(delta_scan, arguments(kind, 0, 2, 100), normal(5, 2, 2, 3, 2), where)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_is_its_pieces(kind):
    scans.assert_pieces_agree(delta_scan, arguments(kind, 0, 2, 100), normal(5, 2, 2, 3, 2), resets(1, 2, 100, 0.03))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 70])
def test_compiles_as_one_graph(kind, time):
    reset = resets(0, 2, time)
    scans.assert_compiles(
        lambda *z: delta_scan(*z[:-1], state=z[-1], reset=reset), [*arguments(kind, 0, 2, time), normal(5, 2, 2, 3, 2)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_operator_is_registered_whole(kind):
    """Fakes of the right shapes and strides, nothing changed in place, gradients through the compiler."""
    q, k, v, beta, *given = arguments(kind, 0, 2, 40)
    log_decay = given[0].reshape(2, 40, 2, -1) if given else torch.zeros(2, 40, 2, 1, dtype=torch.float64)
    inputs = [z.detach().requires_grad_() for z in (q, k, v, log_decay, normal(5, 2, 2, 3, 2), beta.unsqueeze(-1))]
    torch.library.opcheck(torch.ops.seriatim.delta_scan.default, (*inputs, None, None, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_strides_do_not_matter(kind):
    scans.assert_strides_do_not_matter(delta_scan, arguments(kind, 0, 2, 40))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 5])
def test_gradients_of_gradients(kind, time):
    tensors = [*arguments(kind, 0, 1, time, 1, 2, 1), normal(5, 1, 1, 2, 1)]
    assert torch.autograd.gradgradcheck(lambda *z: delta_scan(*z[:-1], state=z[-1]), tensors)


def test_gradients_that_can_be_differentiated_again_are_the_same():
    tensors = arguments("key", 0, 2, 40)
    o, state = delta_scan(*tensors)
    loss = o.square().sum() + state.sum()
    once = torch.autograd.grad(loss, tensors, retain_graph=True)
    assert_close(torch.autograd.grad(loss, tensors, create_graph=True), once, 1e-12, "gradient")


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_kept_once_a_chunk(kind):
    """Beside the inputs: a state of 16 x 16 for 32 tokens at least. What is inside the chunks is computed again."""
    kept = scans.saved_bytes(delta_scan, arguments(kind, 0, 1, 1024, 1, 16, 16))
    assert kept < 1.2 * (1024 / 32) * 16 * 16 * 8


def test_the_state_holds_no_more_than_itself():
    state = delta_scan(*arguments("key", 0, 2, 100))[1]
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


def test_inputs_are_not_changed():
    tensors = [z.detach() for z in arguments("key", 0, 2, 40)]
    before = [z.clone() for z in tensors]
    delta_scan(*tensors, reset=resets(0, 2, 40))
    assert_close(tensors, before, 0, "input")


def test_autocast_does_not_lower_the_precision():
    tensors = [z.detach().float() for z in arguments("key", 0, 2, 40)]
    with torch.autocast("cpu", torch.bfloat16):
        found = delta_scan(*tensors)
    assert_close(floating(found), floating(delta_scan(*tensors)), 1e-7, "value")


def test_mixed_dtypes_are_computed_in_the_widest():
    q, k, v, beta, log_decay = (z.detach() for z in arguments("key", 0, 2, 10))
    o, state = delta_scan(q.bfloat16(), k.bfloat16(), v.bfloat16(), beta.bfloat16(), log_decay)
    assert (o.dtype, state.dtype) == (torch.bfloat16, torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sizes", [(0, 40, 2, 3, 2), (2, 40, 0, 3, 2), (2, 40, 2, 0, 3), (2, 40, 2, 3, 0), (2, 0, 2, 3, 2)]
)
def test_sizes_of_none(kind, sizes):
    tensors = [*arguments(kind, 0, *sizes), normal(5, sizes[0], *sizes[2:])]
    assert_backends_agree(lambda: delta_scan(*tensors[:-1], state=tensors[-1]), tensors)


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
