r"""A matrix memory on every edge of a directed acyclic graph: pLSTM's recurrence.

.. math:: C_e = \sum_{e' \to n(e)} T_{e' e} C_{e'} + S_e k_{n(e)} v_{n(e)}^\top, \qquad
          o_n = s \Big( \sum_{e \to n} M_e C_e^\top q_n + D_n (q_n^\top k_n) v_n \Big)

n(e) is the node where the edge e begins, and e -> n are the edges that end at n. A node thus writes by its source into
the edges that leave it, hands what came in on by its transitions, and reads what came in by its marks; itself it sees
by the direct term only.

Dimensions: B batch, N nodes, E edges, L pairs of edges, H heads, K key dim, V value dim.

The parallel path solves C = T C + S k v^T for the sums over all paths at once: T is strictly triangular where edges
are sorted by the node that they leave, so G = M (I - T)^{-1} S + D is one triangular solve a head, and the output is
(G * q k^T) v. It takes memory of E^2 a head, for graphs of up to some thousands of edges. Source: Pöppel et al., 2025,
arXiv:2506.11997, equations 5 to 8.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_tensors
from seriatim.ops.precision import cast, compute_dtype, full_precision

__all__ = ["dag_scan", "line_graph", "reference"]

Edges = Tensor | Sequence[tuple[int, int]]


def line_graph(edges: Edges) -> Int[Tensor, "L 2"]:
    """All pairs (a, b) of edges of which b begins where a ends, in order of a, then of b: the full line graph.

    edges: (E, 2) pairs of nodes, from and to. The D-mode of pLSTM keeps only some of the pairs, so that at most one
    path joins two edges.
    """
    edges = _as_pairs("edges", edges)
    return (edges[:, None, 1] == edges[None, :, 0]).nonzero()


def dag_scan(
    q: Float[Tensor, "B N H K"],
    k: Float[Tensor, "B N H K"],
    v: Float[Tensor, "B N H V"],
    source: Float[Tensor, "B E H"],
    transition: Float[Tensor, "B L H"],
    mark: Float[Tensor, "B E H"],
    direct: Float[Tensor, "B N H"] | None = None,
    *,
    edges: Edges,
    pairs: Edges | None = None,
    scale: float = 1.0,
) -> tuple[Float[Tensor, "B N H V"], Float[Tensor, "B E H K V"]]:
    """The recurrence over a graph whose nodes are in topological order.

    Args:
        q, k, v: of the nodes.
        source: of the edges, what the node that an edge leaves writes into it.
        transition: of the pairs of edges, what the second takes over from the first.
        mark: of the edges, how the node that an edge enters reads it.
        direct: of the nodes, how each sees itself; None is not at all.
        edges: (E, 2) int, the nodes that each edge leaves and enters; the first is the smaller number.
        pairs: (L, 2) int, edges of which the second begins where the first ends; None is `line_graph(edges)`.
        scale: a factor on q.

    Returns:
        o in the dtype of v, and the memories of the edges, in float32 at least.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above, or an edge does not go up.
    """
    sizes = check_tensors(
        {
            "q": (q, "batch nodes heads keys"),
            "k": (k, "batch nodes heads keys"),
            "v": (v, "batch nodes heads values"),
            "source": (source, "batch edges heads"),
            "mark": (mark, "batch edges heads"),
            "transition": (transition, "batch pairs heads"),
            "direct": (direct, "batch nodes heads?"),
        }
    )
    edges = _checked_edges(edges, sizes)
    pairs = _checked_pairs(line_graph(edges) if pairs is None else pairs, edges, sizes)
    arguments = cast(compute_dtype(q, k, v, source, transition, mark), q, k, v, source, transition, mark, direct)
    with full_precision(q.device):
        scan = choose({"reference": reference, "torch": solved}, arguments[0])
        o, cells = scan(*arguments, edges=edges.to(q.device), pairs=pairs.to(q.device), scale=scale)
    return o.to(v.dtype), cells


def reference(
    q: Float[Tensor, "B N H K"],
    k: Float[Tensor, "B N H K"],
    v: Float[Tensor, "B N H V"],
    source: Float[Tensor, "B E H"],
    transition: Float[Tensor, "B L H"],
    mark: Float[Tensor, "B E H"],
    direct: Float[Tensor, "B N H"] | None = None,
    *,
    edges: Int[Tensor, "E 2"],
    pairs: Int[Tensor, "L 2"],
    scale: float = 1.0,
) -> tuple[Float[Tensor, "B N H V"], Float[Tensor, "B E H K V"]]:
    """The equation, node by node."""
    cells: dict[int, Tensor] = {}
    outputs = []
    for n in range(q.size(1)):
        o = torch.zeros_like(v[:, n])
        for e, (_, end) in enumerate(edges.tolist()):
            if end == n:
                o = o + mark[:, e, :, None] * torch.einsum("bhkv,bhk->bhv", cells[e], q[:, n])
        if direct is not None:
            o = o + (direct[:, n] * (q[:, n] * k[:, n]).sum(-1))[..., None] * v[:, n]
        outputs.append(scale * o)
        for e, (begin, _) in enumerate(edges.tolist()):
            if begin == n:
                cells[e] = source[:, e, :, None, None] * k[:, n, :, :, None] * v[:, n, :, None, :]
                for index, (first, second) in enumerate(pairs.tolist()):
                    if second == e:
                        cells[e] = cells[e] + transition[:, index, :, None, None] * cells[first]
    shape = (q.size(0), 0, *q.shape[2:], v.size(-1))
    memories = torch.stack([cells[e] for e in range(len(edges))], 1) if len(edges) else q.new_zeros(shape)
    return (torch.stack(outputs, 1) if outputs else v), memories


def solved(
    q: Float[Tensor, "B N H K"],
    k: Float[Tensor, "B N H K"],
    v: Float[Tensor, "B N H V"],
    source: Float[Tensor, "B E H"],
    transition: Float[Tensor, "B L H"],
    mark: Float[Tensor, "B E H"],
    direct: Float[Tensor, "B N H"] | None = None,
    *,
    edges: Int[Tensor, "E 2"],
    pairs: Int[Tensor, "L 2"],
    scale: float = 1.0,
) -> tuple[Float[Tensor, "B N H V"], Float[Tensor, "B E H K V"]]:
    """The same by one triangular solve."""
    count, nodes = len(edges), q.size(1)
    order = edges[:, 0].argsort(stable=True)
    place = torch.empty_like(order).index_put((order,), torch.arange(count, device=order.device))
    begin, end = edges.T
    q, k, v = (z.transpose(1, 2) for z in (q * scale, k, v))
    transition, source, mark = (z.transpose(1, 2) for z in (transition, source, mark))
    first, second = place[pairs[:, 0]], place[pairs[:, 1]]
    empty = transition.new_zeros(*transition.shape[:2], count * count)
    handed_on = empty.index_add(2, second * count + first, transition).unflatten(2, (count, count))
    written = _scatter(source, place * nodes + begin, (count, nodes))
    system = torch.eye(count, dtype=q.dtype, device=q.device) - handed_on
    reached = torch.linalg.solve_triangular(system, written, upper=False, unitriangular=True)
    gate = _scatter(mark, end * count + place, (nodes, count)) @ reached
    if direct is not None:
        gate = gate + torch.diag_embed(direct.transpose(1, 2))
    o = (gate * (q @ k.mT)) @ v
    cells = torch.einsum("bhen,bhnk,bhnv->behkv", reached[:, :, place], k, v)
    return o.transpose(1, 2), cells


def _scatter(values: Tensor, where: Tensor, shape: tuple[int, int]) -> Tensor:
    """(B, H, E) into zeros (B, H, *shape) at the flat places `where` (E,)."""
    empty = values.new_zeros(*values.shape[:2], shape[0] * shape[1])
    return empty.index_add(2, where, values).unflatten(2, shape)


def _as_pairs(name: str, pairs: Edges) -> Tensor:
    found = pairs if isinstance(pairs, Tensor) else torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    if found.dim() != 2 or found.size(1) != 2 or found.is_floating_point() or found.dtype == torch.bool:
        raise SeriatimError(
            f"{name} has shape {tuple(found.shape)} and dtype {found.dtype}; it must be (n, 2) integers"
        )
    return found.long()


def _checked_edges(edges: Edges, sizes: dict[str, int]) -> Tensor:
    edges, nodes = _as_pairs("edges", edges), sizes["nodes"]
    if len(edges) != sizes["edges"]:
        raise SeriatimError(f"edges has {len(edges)} edges; source has {sizes['edges']}")
    for begin, end in edges.tolist():
        if not 0 <= begin < end < nodes:
            raise SeriatimError(
                f"edges has an edge from {begin} to {end}; it must go from a smaller to a larger of {nodes} nodes"
            )
    return edges


def _checked_pairs(pairs: Edges, edges: Tensor, sizes: dict[str, int]) -> Tensor:
    pairs = _as_pairs("pairs", pairs)
    if len(pairs) != sizes["pairs"]:
        raise SeriatimError(f"pairs has {len(pairs)} pairs of edges; transition has {sizes['pairs']}")
    for first, second in pairs.tolist():
        inside = 0 <= first < len(edges) and 0 <= second < len(edges)
        if not inside or edges[first, 1] != edges[second, 0]:
            raise SeriatimError(f"pairs has ({first}, {second}); the second edge must begin where the first ends")
    return pairs
