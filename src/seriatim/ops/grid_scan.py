r"""A matrix memory on every edge of a two-dimensional grid, whose edges lead right and down: pLSTM on images.

.. math:: \begin{pmatrix} C^{right}_{rc} \\ C^{down}_{rc} \end{pmatrix} = T_{rc}
          \begin{pmatrix} C^{right}_{r,c-1} \\ C^{down}_{r-1,c} \end{pmatrix} + S_{rc} \otimes k_{rc} v_{rc}^\top

.. math:: o_{rc} = s \big( M_{rc} \cdot (C^{right}_{r,c-1}, C^{down}_{r-1,c})^\top q_{rc}
          + D_{rc} (q_{rc}^\top k_{rc}) v_{rc} \big)

T is 2 x 2, out of (right, down) by in from (left, up); S and M have two parts likewise. The P-mode is
:math:`T = \gamma \, (\alpha, 1 - \alpha)^\top (1, 1)`; the D-mode has one of the turns, T[0, 1] or T[1, 0], zero.

Dimensions: B batch, R rows, C columns, H heads, K key dim, V value dim.

The kernels go from node to node; the parallel path (:mod:`seriatim.ops.grid_blocks`) merges blocks of nodes. Source:
Pöppel et al., 2025, arXiv:2506.11997, section 4.3, appendix A.7.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.grid_scan import grid_scan as compiled
from seriatim.ops.backend import choose
from seriatim.ops.checks import check_tensors
from seriatim.ops.grid_blocks import Border, merged, nothing
from seriatim.ops.precision import cast, compute_dtype, full_precision

__all__ = ["grid_scan", "reference"]


def grid_scan(
    q: Float[Tensor, "B R C H K"],
    k: Float[Tensor, "B R C H K"],
    v: Float[Tensor, "B R C H V"],
    source: Float[Tensor, "B R C H 2"],
    transition: Float[Tensor, "B R C H 2 2"],
    mark: Float[Tensor, "B R C H 2"],
    direct: Float[Tensor, "B R C H"] | None = None,
    *,
    scale: float = 1.0,
    state: Border | None = None,
    keep_state: bool = True,
    flips: Sequence[int] = (),
) -> tuple[Float[Tensor, "B R C H V"], Border | None]:
    """The recurrence over a grid, from its upper left corner to its lower right one, or from another to the opposite.

    Args:
        q, k, v: of the nodes.
        source: what a node writes to its right and down.
        transition: (..., out, in), what it hands on to its right and down of what comes from the left and from above.
        mark: how it reads what comes from the left and from above.
        direct: how it sees itself; None is not at all.
        scale: a factor on q.
        state: what enters at the left (B, R, H, K, V) and the top (B, C, H, K, V), as it leaves another grid, or None.
        keep_state: whether to return what leaves the grid, which may cost more than o.
        flips: axes to go along backwards: 1 from the last row up, 2 from the last column to the left. The same as
            turning all that is given and returned along them, so that left is right and up is down.

    Returns:
        o in the dtype of v, and what leaves at the right and at the bottom, in float32 at least, or None.

    Raises:
        SeriatimError: an argument has another shape, dtype or device than the above.
    """
    if state is not None and (not isinstance(state, tuple) or len(state) != 2):
        raise SeriatimError(
            f"state is a {type(state).__name__}; it must be a pair of tensors, at the left and at the top"
        )
    left, top = (None, None) if state is None else state
    optional = "?" if state is None else ""
    check_tensors(
        {
            "q": (q, "batch rows columns heads keys"),
            "k": (k, "batch rows columns heads keys"),
            "v": (v, "batch rows columns heads values"),
            "source": (source, "batch rows columns heads 2"),
            "transition": (transition, "batch rows columns heads 2 2"),
            "mark": (mark, "batch rows columns heads 2"),
            "direct": (direct, "batch rows columns heads?"),
            "state[0]": (left, f"batch rows heads keys values{optional}"),
            "state[1]": (top, f"batch columns heads keys values{optional}"),
        }
    )
    if not isinstance(flips, tuple | list) or sorted(flips) not in ([], [1], [2], [1, 2]):
        raise SeriatimError(f"flips is {flips!r}; it must be axes out of 1, the rows, and 2, the columns, each once")
    dtype = compute_dtype(q, k, v, source, transition, mark, left, top)
    arguments = cast(dtype, q, k, v, source, transition, mark, direct)
    borders = None if left is None or top is None else (left.to(dtype), top.to(dtype))
    with full_precision(q.device):
        scan = choose(_IMPLEMENTATIONS, arguments[0])
        o, borders = scan(*arguments, scale=scale, state=borders, keep_state=keep_state, flips=tuple(flips))
    return o.to(v.dtype), borders if keep_state else None


def reference(
    q: Float[Tensor, "B R C H K"],
    k: Float[Tensor, "B R C H K"],
    v: Float[Tensor, "B R C H V"],
    source: Float[Tensor, "B R C H 2"],
    transition: Float[Tensor, "B R C H 2 2"],
    mark: Float[Tensor, "B R C H 2"],
    direct: Float[Tensor, "B R C H"] | None = None,
    *,
    scale: float = 1.0,
    state: Border | None = None,
    keep_state: bool = True,
) -> tuple[Float[Tensor, "B R C H V"], Border | None]:
    """The equation, node by node."""
    rows, columns = q.shape[1:3]
    left, top = nothing(q, v) if state is None else state
    lefts, tops, outputs = list(left.unbind(1)), list(top.unbind(1)), []
    for r in range(rows):
        for c in range(columns):
            cells = torch.stack([lefts[r], tops[c]], 2)
            o = torch.einsum("bhi,bhikv,bhk->bhv", mark[:, r, c], cells, q[:, r, c])
            if direct is not None:
                o = o + (direct[:, r, c] * (q[:, r, c] * k[:, r, c]).sum(-1))[..., None] * v[:, r, c]
            outputs.append(scale * o)
            written = torch.einsum("bhi,bhk,bhv->bhikv", source[:, r, c], k[:, r, c], v[:, r, c])
            new = torch.einsum("bhij,bhjkv->bhikv", transition[:, r, c], cells) + written
            lefts[r], tops[c] = new.unbind(2)
    o = torch.stack(outputs, 1).unflatten(1, (rows, columns)) if outputs else v
    return o, (torch.stack(lefts, 1) if rows else left, torch.stack(tops, 1) if columns else top)


def _flipping(scan: Callable[..., Any]) -> Callable[..., Any]:
    """The same from any corner, by turning what is given and what is found."""

    def run(*arguments: Tensor | None, state: Border | None, flips: tuple[int, ...], **options: Any) -> Any:
        if not flips:
            return scan(*arguments, state=state, **options)
        turned = [None if z is None else z.flip(flips) for z in arguments]
        o, borders = scan(*turned, state=_turned(state, flips), **options)
        return o.flip(flips), _turned(borders, flips)

    return run


def _turned(border: Border | None, flips: tuple[int, ...]) -> Border | None:
    if border is None:
        return None
    left, top = border
    return left.flip(1) if 1 in flips else left, top.flip(1) if 2 in flips else top


_IMPLEMENTATIONS = {"reference": _flipping(reference), "torch": _flipping(merged), "cpu": compiled}
