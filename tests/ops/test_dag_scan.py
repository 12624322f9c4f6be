import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, gradients, normal
from seriatim.core.errors import SeriatimError
from seriatim.ops import matrix_scan
from seriatim.ops.dag_scan import dag_scan, line_graph

DIAMOND = [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3)]


def random_graph(seed, nodes, chance=0.4):
    """Edges in a random order."""
    generator = torch.Generator().manual_seed(seed)
    edges = [(a, b) for b in range(nodes) for a in range(b) if torch.rand((), generator=generator) < chance]
    return [edges[index] for index in torch.randperm(len(edges), generator=generator).tolist()]


def arguments(edges, nodes, seed, batch=2, heads=2, keys=3, values=2):
    """q, k, v, source, transition, mark, direct: random leaves."""
    pairs = len(line_graph(edges))
    q, k, v = (normal(seed + index, batch, nodes, heads, size) for index, size in enumerate((keys, keys, values)))
    source, transition, mark, direct = (
        normal(seed + 3 + index, batch, count, heads)
        for index, count in enumerate((len(edges), pairs, len(edges), nodes))
    )
    return [q, k, v, source, transition, mark, direct]


@few
@given(
    nodes=st.integers(0, 8),
    batch=st.integers(0, 2),
    heads=st.integers(1, 2),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    direct=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_recurrence(nodes, batch, heads, sizes, direct, seed):
    edges = random_graph(seed, nodes)
    tensors = arguments(edges, nodes, seed, batch, heads, *sizes)[: 7 if direct else 6]
    assert_backends_agree(lambda: dag_scan(*tensors, edges=edges, scale=0.7), tensors)


@few
@given(seed=st.integers(0, 1000))
def test_agrees_on_some_of_the_pairs(seed):
    edges = random_graph(seed, 7)
    pairs = line_graph(edges)[::2]
    tensors = arguments(edges, 7, seed)
    tensors[4] = normal(seed + 9, 2, len(pairs), 2)
    assert_backends_agree(lambda: dag_scan(*tensors, edges=edges, pairs=pairs), tensors)


def test_sums_over_all_paths():
    """Equation 7 written out for a diamond of four nodes."""
    q, k, v, source, transition, mark, direct = arguments(DIAMOND, 4, 0, 1, 1)
    o = dag_scan(q, k, v, source, transition, mark, direct, edges=DIAMOND)[0]
    s, t, m, d = (z[0, :, 0] for z in (source, transition, mark, direct))
    assert line_graph(DIAMOND).tolist() == [[0, 2], [1, 3]]
    from_start = m[2] * t[0] * s[0] + m[3] * t[1] * s[1] + m[4] * s[4]
    gates = [from_start, m[2] * s[2], m[3] * s[3], d[3]]
    wanted = sum(g * (q[0, 3, 0] @ k[0, n, 0]) * v[0, n, 0] for n, g in enumerate(gates))
    assert_close([o[0, 3, 0]], [wanted], 1e-12, "value")


def test_a_chain_is_a_sequence():
    """What enters a node of a chain is what matrix_scan holds after the node before."""
    edges = [(n, n + 1) for n in range(11)]
    q, k, v, source, _, mark, _ = arguments(edges, 12, 0)
    decay = torch.rand(2, 10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    o, cells = dag_scan(q, k, v, source, decay, mark, edges=edges)
    log_decay = torch.cat([torch.zeros(2, 1, 2, dtype=torch.float64), decay.log()], 1)
    memories = [
        matrix_scan(q[:, :n], k[:, :n] * source[:, :n, :, None], v[:, :n], log_decay[:, :n])[1] for n in range(1, 12)
    ]
    wanted = torch.stack(memories, 1)
    assert_close([cells], [wanted], 1e-12, "value")
    read = torch.einsum("bnhkv,bnhk->bnhv", wanted, q[:, 1:]) * mark[..., None]
    assert_close([o[:, 1:]], [read], 1e-12, "value")
    assert not o[:, 0].any()
    inputs = [q, k, v, source, decay, mark]
    assert_close(gradients(o[:, 1:], inputs), gradients(read, inputs), 1e-11, "gradient")


def test_many_paths_stay_bounded_in_p_mode():
    """Section 4.2: where each edge hands on no more than it holds, the number of paths (here 2^25) does not matter."""
    edges = [(n, n + 1) for n in range(49)] + [(n, n + 2) for n in range(48)]
    pairs = line_graph(edges)
    count = torch.bincount(pairs[:, 0], minlength=len(edges)).double()
    transition = (1 / count[pairs[:, 0]])[None, :, None]
    one = torch.ones(1, 50, 1, 1, dtype=torch.float64)
    gate = torch.zeros(1, len(edges), 1, dtype=torch.float64)
    gate[:, 0] = 1
    _, cells = dag_scan(one, one, one, gate, transition, gate, edges=edges)
    ends = [index for index, edge in enumerate(edges) if edge[1] == 49]
    assert abs(cells.squeeze()[ends].sum() - 1) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(dtype):
    tensors = [z.detach().to(dtype) for z in arguments(DIAMOND, 4, 0)]
    found, cells = dag_scan(*tensors, edges=DIAMOND)
    wanted = dag_scan(*(z.double() for z in tensors), edges=DIAMOND)[0]
    assert (found.dtype, cells.dtype) == (dtype, torch.float32)
    scans.assert_near(found, wanted, 1e-6 if dtype == torch.float32 else 5e-3)


def test_gradients_of_gradients():
    tensors = arguments(DIAMOND, 4, 0, 1, 1, 2, 1)
    assert torch.autograd.gradgradcheck(lambda *z: dag_scan(*z, edges=DIAMOND), tensors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 4, 6)}, r"q has shape \(2, 4, 6\); it must be \(batch, nodes, heads, keys\)"),
        ({"mark": torch.zeros(2, 4, 2)}, r"mark has shape .* = \(2, 5, 2\)"),
        ({"edges": DIAMOND[:4]}, "edges has 4 edges; source has 5"),
        (
            {"edges": [*DIAMOND[:4], (3, 0)]},
            "edges has an edge from 3 to 0; it must go from a smaller to a larger of 4 nodes",
        ),
        ({"edges": [*DIAMOND[:4], (0, 4)]}, "edges has an edge from 0 to 4"),
        (
            {"edges": torch.zeros(5, 2)},
            r"edges has shape \(5, 2\) and dtype torch.float32; it must be \(n, 2\) integers",
        ),
        ({"pairs": [(0, 2)]}, "pairs has 1 pairs of edges; transition has 2"),
        ({"pairs": [(0, 2), (0, 3)]}, r"pairs has \(0, 3\); the second edge must begin where the first ends"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    names = ("q", "k", "v", "source", "transition", "mark", "direct")
    good = dict(zip(names, (z.detach().float() for z in arguments(DIAMOND, 4, 0)), strict=True), edges=DIAMOND)
    with pytest.raises(SeriatimError, match=message):
        dag_scan(**{**good, **change})
