import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, floating, gradients, normal
from seriatim.core.errors import SeriatimError
from seriatim.ops import backend, dag_scan, line_graph, matrix_scan
from seriatim.ops.grid_scan import grid_scan

SIDES = [1, 2, 3, 5, 8, 9, 16, 17]


def propagating(seed, *shape):
    """P-mode: every angle, decays of both signs."""
    angle, decay = torch.sigmoid(normal(seed, *shape)), torch.tanh(3 * normal(seed + 1, *shape))
    column = torch.stack([decay * angle, decay * (1 - angle)], -1)
    return torch.stack([column, column], -1).detach().requires_grad_()


def distributing(seed, *shape):
    """D-mode: no turn from the right downwards."""
    transition = torch.tanh(2 * normal(seed, *shape, 2, 2)).detach()
    transition[..., 1, 0] = 0
    return transition.requires_grad_()


MODES = {"P": propagating, "D": distributing}


def arguments(mode, seed, batch, rows, columns, heads=2, keys=3, values=2):
    shape = (batch, rows, columns, heads)
    q, k, v = (normal(seed + i, *shape, size) for i, size in enumerate((keys, keys, values)))
    return [
        q,
        k,
        v,
        normal(seed + 3, *shape, 2),
        MODES[mode](seed + 4, *shape),
        normal(seed + 6, *shape, 2),
        normal(seed + 7, *shape),
    ]


def borders(seed, batch, rows, columns, heads=2, keys=3, values=2):
    return tuple(normal(seed + i, batch, side, heads, keys, values) for i, side in enumerate((rows, columns)))


def as_graph(rows, columns):
    """The edges of the grid, node r * columns + c, and of each its place in (node, right or down)."""
    edges = []
    for node in range(rows * columns):
        edges += [(node, node + 1, 0)] if node % columns < columns - 1 else []
        edges += [(node, node + columns, 1)] if node < (rows - 1) * columns else []
    return edges


def on_the_graph(tensors, rows, columns):
    """The same recurrence as a general graph's."""
    q, k, v, source, transition, mark, direct = (z.flatten(1, 2) for z in tensors)
    edges = as_graph(rows, columns)
    begin, end, side = torch.tensor(edges, dtype=torch.int64).reshape(-1, 3).T
    pairs = line_graph([edge[:2] for edge in edges])
    first, second = pairs.T
    return dag_scan(
        q,
        k,
        v,
        source[:, begin, :, :].gather(-1, side[None, :, None, None].expand(len(q), -1, q.size(2), 1)).squeeze(-1),
        transition[:, begin[second], :, side[second], side[first]].transpose(0, 1),
        mark[:, end, :, :].gather(-1, side[None, :, None, None].expand(len(q), -1, q.size(2), 1)).squeeze(-1),
        direct,
        edges=[edge[:2] for edge in edges],
        pairs=pairs,
    )[0].view(tensors[2].shape)


@pytest.mark.parametrize("mode", MODES)
@few
@given(
    batch=st.integers(0, 2),
    rows=st.sampled_from([0, *SIDES]),
    columns=st.sampled_from([0, *SIDES]),
    heads=st.integers(1, 2),
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    starts=st.booleans(),
    direct=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(mode, batch, rows, columns, heads, sizes, starts, direct, seed):
    tensors = arguments(mode, seed, batch, rows, columns, heads, *sizes)[: 7 if direct else 6]
    state = borders(seed + 9, batch, rows, columns, heads, *sizes) if starts else None
    inputs = [*tensors, *(state or ())]
    assert_backends_agree(lambda: grid_scan(*tensors, scale=0.7, state=state), inputs)


@pytest.mark.parametrize(("rows", "columns"), [(5, 37), (33, 18)])
def test_agrees_over_many_blocks(rows, columns):
    tensors, state = arguments("P", 0, 1, rows, columns, 1, 2, 2), borders(9, 1, rows, columns, 1, 2, 2)
    assert_backends_agree(lambda: grid_scan(*tensors, state=state), [*tensors, *state])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 9), (7, 1), (5, 7)])
def test_is_the_recurrence_on_its_graph(mode, rows, columns):
    tensors = arguments(mode, 0, 2, rows, columns)
    found, wanted = grid_scan(*tensors)[0], on_the_graph(tensors, rows, columns)
    assert_close([found], [wanted], 1e-11, "value")
    assert_close(gradients(found, tensors), gradients(wanted, tensors), 1e-10, "gradient")


@pytest.mark.parametrize("turned", [False, True])
def test_one_row_is_a_sequence(turned):
    """What enters a node of one row is what matrix_scan holds after the node before."""
    q, k, v, source, _, mark, _ = arguments("P", 0, 2, 1, 40)
    decay = torch.rand(2, 1, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    transition = torch.zeros(2, 1, 40, 2, 2, 2, dtype=torch.float64)
    side = int(turned)
    transition[..., side, side] = decay
    tensors = [q, k, v, source, transition, mark]
    found = grid_scan(*(z.transpose(1, 2) for z in tensors) if turned else tensors)[0]
    late = [torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1) for z in (k[:, 0], v[:, 0], decay[:, 0].log())]
    late[0] = late[0] * torch.cat([torch.zeros_like(source[:, 0, :1]), source[:, 0, :-1]], 1)[..., side, None]
    wanted = matrix_scan(q[:, 0], *late)[0] * mark[:, 0, :, :, side, None]
    assert_close([found.squeeze(2 if turned else 1)], [wanted], 1e-12, "value")


@pytest.mark.parametrize("rows_first", [True, False])
@pytest.mark.parametrize("cut", [1, 8, 17, 18])
def test_the_whole_is_its_pieces(rows_first, cut):
    """A grid is its left part and then its right one, or its upper part and then its lower one."""
    axis, size = (1, 19) if rows_first else (2, 19)
    tensors, state = arguments("P", 0, 1, 19, 19), borders(9, 1, 19, 19)
    whole = grid_scan(*tensors, state=state)
    first, second = zip(*(z.split([cut, size - cut], axis) for z in tensors), strict=True)
    across, along = state if rows_first else state[::-1]
    across = across.split([cut, size - cut], 1)
    y1, ends1 = grid_scan(*first, state=(across[0], along) if rows_first else (along, across[0]))
    y2, ends2 = grid_scan(*second, state=(across[1], ends1[1]) if rows_first else (ends1[0], across[1]))
    ends = (
        (torch.cat([ends1[0], ends2[0]], 1), ends2[1]) if rows_first else (ends2[0], torch.cat([ends1[1], ends2[1]], 1))
    )
    pieces = torch.cat([y1, y2], axis), ends
    assert_close(floating(pieces), floating(whole), 1e-11, "value")
    assert_close(gradients(pieces, [*tensors, *state]), gradients(whole, [*tensors, *state]), 1e-10, "gradient")


def test_the_p_mode_keeps_what_was_written_and_leads_it_along_its_angle():
    """Appendix C.2: at the critical point the sum over an anti-diagonal stays; most goes in the direction alpha."""
    side, angle = 33, 0.25
    one = torch.ones(1, side, side, 1, 1, dtype=torch.float64)
    source = torch.zeros(1, side, side, 1, 2, dtype=torch.float64)
    source[:, 0, 0] = torch.tensor([angle, 1 - angle], dtype=torch.float64)
    transition = torch.tensor([[angle, angle], [1 - angle, 1 - angle]], dtype=torch.float64).expand(
        1, side, side, 1, 2, 2
    )
    o = grid_scan(one, one, one, source, transition, torch.ones_like(source))[0].squeeze()
    diagonal = torch.stack([o[32 - column, column] for column in range(33)])
    assert abs(diagonal.sum() - 1) < 1e-12
    assert diagonal.argmax() == 8


def test_the_d_mode_reaches_everything_undiminished():
    side = 20
    one = torch.ones(1, side, side, 1, 1, dtype=torch.float64)
    source = torch.zeros(1, side, side, 1, 2, dtype=torch.float64)
    source[:, 0, 0] = 1
    transition = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64).expand(1, side, side, 1, 2, 2)
    mark = torch.tensor([1.0, 0.0], dtype=torch.float64).expand(1, side, side, 1, 2)
    o = grid_scan(one, one, one, source, transition, mark)[0].squeeze()
    assert torch.equal(o[:, 1:], torch.ones(side, side - 1, dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 1e-2)])
def test_lower_precision(dtype, tolerance):
    low = [z.detach().to(dtype) for z in arguments("P", 0, 1, 20, 20)]
    found, state = grid_scan(*low)
    with backend("reference"):
        wanted = grid_scan(*(z.double() for z in low))[0]
    assert found.dtype == dtype
    assert state[0].dtype == torch.float32
    scans.assert_near(found, wanted, tolerance)


def test_the_state_may_be_left_out():
    for side in (5, 20):
        tensors = arguments("P", 0, 1, side, side)
        found, state = grid_scan(*tensors, keep_state=False)
        assert state is None
        assert torch.equal(found, grid_scan(*tensors)[0])


@pytest.mark.parametrize("flips", [(1,), (2,), (1, 2)])
def test_from_another_corner(flips):
    """The first node to read anything is then beside the corner that it begins at, and so is what enters."""
    rows, columns = 3, 4
    tensors, state = arguments("D", 0, 1, rows, columns), borders(9, 1, rows, columns)
    last = (0 if 1 in flips else rows - 1, 0 if 2 in flips else columns - 1)
    corner = (rows - 1 - last[0], columns - 1 - last[1])
    o, (right, bottom) = grid_scan(*tensors, state=state, flips=flips)
    q, mark = tensors[0][:, *corner], tensors[5][:, *corner]
    entered = torch.stack([state[0][:, corner[0]], state[1][:, corner[1]]], 2)
    read = torch.einsum("bhi,bhikv,bhk->bhv", mark, entered, q)
    own = (tensors[6][:, *corner] * (q * tensors[1][:, *corner]).sum(-1))[..., None] * tensors[2][:, *corner]
    assert_close([o[:, *corner]], [read + own], 1e-12, "value")
    (reached,) = torch.autograd.grad(right[:, last[0]].sum() + bottom[:, last[1]].sum(), tensors[2])
    assert (reached[:, *last].abs().sum(-1) > 0).all()


def test_compiles_as_one_graph(monkeypatch):
    for limit in ("ALONE", "SIDE"):
        monkeypatch.setattr(sys.modules["seriatim.ops.grid_blocks"], limit, 2)
    scans.assert_compiles(grid_scan, arguments("P", 0, 1, 2, 3))


def test_gradients_of_gradients():
    tensors = arguments("P", 0, 1, 2, 3, 1, 2, 1)
    assert torch.autograd.gradgradcheck(lambda *z: tuple(floating(grid_scan(*z))), tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 6)}, r"q has shape \(2, 5, 6\); it must be \(batch, rows, columns, heads, keys\)"),
        ({"source": torch.zeros(1, 3, 4, 2, 3)}, r"source has shape .* = \(1, 3, 4, 2, 2\)"),
        ({"transition": torch.zeros(1, 3, 4, 2, 2)}, r"transition has shape .* = \(1, 3, 4, 2, 2, 2\)"),
        ({"direct": torch.zeros(1, 3, 4)}, r"direct has shape .* = \(1, 3, 4, 2\)"),
        ({"state": torch.zeros(1, 3, 2, 3, 3)}, r"state is a Tensor; it must be a pair of tensors"),
        ({"state": (torch.zeros(1, 3, 2, 3, 3), None)}, r"state\[1\] is None; it must be a tensor"),
        ({"flips": (0,)}, r"flips is \(0,\); it must be axes out of 1, the rows, and 2, the columns"),
        ({"flips": (1, 1)}, r"flips is \(1, 1\); it must be axes out of 1, the rows, and 2, the columns, each once"),
        ({"flips": 1}, "flips is 1; it must be axes"),
        ({"state": (torch.zeros(1, 4, 2, 3, 3),) * 2}, r"state\[0\] has shape .* = \(1, 3, 2, 3, 3\)"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    names = ("q", "k", "v", "source", "transition", "mark", "direct")
    good = dict(zip(names, arguments("P", 0, 1, 3, 4, values=3), strict=True))
    with pytest.raises(SeriatimError, match=message):
        grid_scan(**{**{name: z.detach().float() for name, z in good.items()}, **change})


@pytest.mark.parametrize("name", ["cpu", "torch", "reference"])
def test_an_empty_batch_can_be_learned_from(name):
    tensors = [z.detach().float()[:0].requires_grad_() for z in arguments("P", 0, 1, 3, 4)]
    with backend(name):
        o, _ = grid_scan(*tensors)
    o.sum().backward()
    assert tensors[2].grad.shape == tensors[2].shape
