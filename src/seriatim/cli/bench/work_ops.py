"""Every op on our kernels against our own portable path: the rows that need nobody else."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim import ops
from seriatim.cli.bench import counts
from seriatim.cli.bench.differentiated import Differentiated, draw, drawn
from seriatim.cli.bench.work import NotAvailableError, Pair, Peer, Target, Work, sizes
from seriatim.core.errors import SeriatimError
from seriatim.ops.backend import BACKENDS

__all__ = ["GATES", "delta_inputs", "matrix_inputs", "op_named", "require_cell", "works"]

PORTABLE = Peer("our torch backend")
DECAYS = {"no decay": None, "a decay per head": False, "a decay per key": True}
GATES = {"elman": 1, "lstm": 4, "gru": 3, "slstm": 4}


def works(quick: bool) -> list[Work]:
    """The rows."""
    shorter = 8 if quick else 1
    found = [
        _diagonal(False, 4096 // shorter),
        _diagonal(True, 4096 // shorter),
        _selective(2048 // shorter),
        *(_matrix(decay, 2048 // shorter) for decay in DECAYS),
        *(_delta(decay, 2048 // shorter) for decay in list(DECAYS)[1:]),
        _softmax(4096 // shorter),
        _grid(7 if quick else 14),
        *(_cell(name, 256 // shorter) for name in GATES),
        _conv(4096 // shorter),
        _window(4096 // shorter, 256 // shorter),
        _cauchy(16384 // shorter),
    ]
    for dim, heads in ((64, 8), (128, 4)):
        found += [_matrix_peak(dim, heads, 4096 // shorter), _delta_peak(dim, heads, 4096 // shorter)]
    return found


def op_named(name: str) -> Callable[..., Any]:
    """The op. Raises NotAvailableError where this version has none."""
    found: Callable[..., Any] | None = getattr(ops, name, None)
    if found is None:
        raise NotAvailableError(f"this version of seriatim has no op {name}")
    return found


def require_cell(name: str) -> None:
    """Raises NotAvailableError where cell_scan knows no such cell."""
    from seriatim.ops.cell_scan import init_cell_state

    try:
        init_cell_state(name, 1, 1, 1, like=torch.empty(0))
    except SeriatimError as error:
        raise NotAvailableError(f"this version of seriatim has no cell {name!r}") from error


def matrix_inputs(batch: int, time: int, heads: int, dim: int, per_key: bool | None) -> list[Tensor]:
    """q, k, v and, unless per_key is None, log decays of mostly a few percent a token."""
    q, k, v = drawn(*[(batch, time, heads, dim)] * 3)
    if per_key is None:
        return [q, k, v]
    return [q, k, v, F.logsigmoid(draw(3, *((batch, time, heads, dim) if per_key else (batch, time, heads))) + 3)]


def delta_inputs(batch: int, time: int, heads: int, dim: int, per_key: bool | None) -> list[Tensor]:
    """The same with keys of length 1 and, after v, beta between 0 and 1."""
    q, k, v, *decays = matrix_inputs(batch, time, heads, dim, per_key)
    return [q, F.normalize(k, dim=-1), v, draw(4, batch, time, heads).sigmoid(), *decays]


def _row(
    name: str,
    shape: str,
    op: str,
    call: Callable[..., Any],
    inputs: Callable[[], Sequence[Tensor]],
    flops: float,
    *,
    least_flops: float | None = None,
    target: Target | None = None,
    backward: bool = True,
    cell: str | None = None,
) -> Work:
    """call(op, *inputs) returns the op's output; flops are the forward pass's."""

    def make() -> Pair:
        function = op_named(op)
        if cell is not None:
            require_cell(cell)
        if "cpu" not in BACKENDS:
            raise NotAvailableError("this version of seriatim has no backend 'cpu'")
        leaves = inputs()

        def on(backend: str) -> Differentiated:
            def run(*tensors: Tensor) -> Tensor:
                with ops.backend(backend):
                    out: Tensor = call(function, *tensors)
                return out

            return Differentiated(run, leaves, backward)

        ours, peer = on("cpu"), on("torch")
        times = counts.training(1) if backward else 1.0
        return Pair(
            ours=ours,
            peer=peer,
            path="with ops.backend('torch')",
            compare=lambda: (ours(), peer()),
            flops=times * flops,
            least_flops=None if least_flops is None else times * least_flops,
            bytes=ours.bytes(peer()[0]),
        )

    direction = "forward and backward" if backward else "forward"
    return Work(f"{name}, {direction}", shape, PORTABLE, make, target)


def _diagonal(is_complex: bool, time: int) -> Work:
    features = 256 if is_complex else 512

    def inputs() -> list[Tensor]:
        shapes = [(2, time, features, 2)] * 2 if is_complex else [(2, time, features)] * 2
        a, b = drawn(*shapes)
        if not is_complex:
            return [a.sigmoid(), b]
        a = a / (1 + a.norm(dim=-1, keepdim=True))
        return [torch.view_as_complex(a), torch.view_as_complex(b)]

    return _row(
        f"diagonal_scan, {'complex' if is_complex else 'real'}", sizes(B=2, T=time, F=features), "diagonal_scan",
        lambda op, a, b: _real(op(a, b)[0]), inputs, counts.diagonal(2 * time * features, is_complex),
    )  # fmt: skip


def _real(h: Tensor) -> Tensor:
    return torch.view_as_real(h) if h.is_complex() else h


def _selective(time: int) -> Work:
    channels, states = 512, 16

    def inputs() -> list[Tensor]:
        x, delta, B, C = drawn((2, time, channels), (2, time, channels), (2, time, states), (2, time, states))
        A = -torch.arange(1.0, states + 1).repeat(channels, 1)
        return [x, F.softplus(delta - 4), A, B, C, torch.ones(channels)]

    return _row(
        "selective_scan", sizes(B=2, T=time, E=channels, N=states), "selective_scan",
        lambda op, *z: op(*z)[0], inputs, counts.selective(2 * time, channels, states),
    )  # fmt: skip


def _matrix(decay: str, time: int) -> Work:
    per_key, shape = DECAYS[decay], (2 * time, 4, 64, 64)
    return _row(
        f"matrix_scan, {decay}", sizes(B=2, T=time, H=4, K=64, V=64), "matrix_scan",
        lambda op, *z: op(*z)[0], lambda: matrix_inputs(2, time, 4, 64, per_key), counts.chunked_matrix(*shape),
        least_flops=counts.matrix(*shape, per_key is not None), target=None if per_key is None else Target(3),
    )  # fmt: skip


def _delta(decay: str, time: int) -> Work:
    per_key, shape = DECAYS[decay], (2 * time, 4, 64, 64)
    return _row(
        f"delta_scan, {decay}", sizes(B=2, T=time, H=4, K=64, V=64), "delta_scan",
        lambda op, *z: op(*z)[0], lambda: delta_inputs(2, time, 4, 64, per_key), counts.chunked_delta(*shape),
        least_flops=counts.delta(*shape, True),
    )  # fmt: skip


def _matrix_peak(dim: int, heads: int, time: int) -> Work:
    shape = (time, heads, dim, dim)
    return _row(
        "matrix_scan, a decay per head", sizes(B=1, T=time, H=heads, K=dim, V=dim), "matrix_scan",
        lambda op, *z: op(*z)[0], lambda: matrix_inputs(1, time, heads, dim, False), counts.chunked_matrix(*shape),
        least_flops=counts.matrix(*shape, True), target=Target(0.4, "peak"), backward=False,
    )  # fmt: skip


def _delta_peak(dim: int, heads: int, time: int) -> Work:
    shape = (time, heads, dim, dim)
    return _row(
        "delta_scan, a decay per head", sizes(B=1, T=time, H=heads, K=dim, V=dim), "delta_scan",
        lambda op, *z: op(*z)[0], lambda: delta_inputs(1, time, heads, dim, False), counts.chunked_delta(*shape),
        least_flops=counts.delta(*shape, True), target=Target(0.4, "peak"), backward=False,
    )  # fmt: skip


def _softmax(time: int) -> Work:
    return _row(
        "softmax_scan", sizes(B=2, T=time, H=4, D=64), "softmax_scan",
        lambda op, *z: op(*z)[0], lambda: drawn((2, time, 4), (2, time, 4, 64)), counts.softmax(2 * time, 4, 64),
    )  # fmt: skip


def _grid(side: int) -> Work:
    """In the P-mode of pLSTM: what comes in is handed on to the right and down by shares."""
    shape, heads, dim = (4, side, side, 4), 4, 32

    def inputs() -> list[Tensor]:
        q, k, v = drawn(*[(*shape, dim)] * 3)
        share, source, mark = draw(3, *shape, 1).sigmoid(), draw(4, *shape, 2).sigmoid(), draw(5, *shape, 2).sigmoid()
        transition = torch.cat([share, 1 - share], -1).unsqueeze(-1).repeat(1, 1, 1, 1, 1, 2)
        return [q, k, v, source, transition, mark]

    return _row(
        "grid_scan", sizes(B=4, R=side, C=side, H=heads, K=dim, V=dim), "grid_scan",
        lambda op, *z: op(*z, keep_state=False)[0], inputs, counts.grid(4 * side**2, heads, dim, dim),
    )  # fmt: skip


def _cell(cell: str, time: int) -> Work:
    gates = GATES[cell]

    def inputs() -> list[Tensor]:
        x, recurrent, bias = drawn((8, time, gates, 4, 64), (gates, 4, 64, 64), (gates, 4, 64))
        return [x, recurrent / 8, bias]

    return _row(
        f"cell_scan, {cell}", sizes(B=8, T=time, H=4, D=64), "cell_scan",
        lambda op, *z: op(cell, *z)[0], inputs, counts.cell(8 * time, gates, 4, 64), cell=cell,
    )  # fmt: skip


def _conv(time: int) -> Work:
    return _row(
        "short_conv", sizes(B=2, T=time, D=512, W=4), "short_conv",
        lambda op, *z: op(*z)[0], lambda: drawn((2, time, 512), (512, 4), (512,)), 2.0 * 2 * time * 512 * 4,
    )  # fmt: skip


def _window(time: int, window: int) -> Work:
    return _row(
        f"attention, window {window}", sizes(B=1, T=time, H=4, K=64, V=64), "attention",
        lambda op, *z: op(*z, window=window)[0], lambda: drawn(*[(1, time, 4, 64)] * 3),
        counts.attention(time, 4, window, 64, 64),
    )  # fmt: skip


def _cauchy(length: int) -> Work:
    """What S4 asks for a kernel of this length: four products of each system, at half of the roots of unity."""
    systems, products, poles, nodes = 16, 4, 32, length // 2

    def make() -> Pair:
        op = op_named("cauchy")
        v, w = drawn((systems, products, poles, 2), (systems, poles, 2))
        w = torch.stack([-0.01 - w[..., 0].abs(), 3 * w[..., 1]], -1)
        z = 2 * torch.tan(torch.arange(nodes) * (math.pi / length))
        z = torch.complex(torch.zeros_like(z), z)

        def ours(v: Tensor, w: Tensor) -> Tensor:
            return _real(op(torch.view_as_complex(v), z, torch.view_as_complex(w)))

        def peer(v: Tensor, w: Tensor) -> Tensor:
            whole_v, whole_w = (torch.cat([half, half.conj()], -1) for half in map(torch.view_as_complex, (v, w)))
            return _real((whole_v.unsqueeze(3) / (z - whole_w.unsqueeze(2)).unsqueeze(1)).sum(2))

        own, other = Differentiated(ours, [v, w]), Differentiated(peer, [v, w])
        return Pair(
            ours=own,
            peer=other,
            path="all fractions in memory, then their sum",
            compare=lambda: (own(), other()),
            flops=counts.training(counts.cauchy(systems * poles * nodes, products)),
            bytes=own.bytes(other()[0]),
        )

    shape = sizes(G=systems, J=products, N=poles, L=nodes)
    return Work("cauchy, forward and backward", shape, Peer("plain PyTorch"), make, Target(3))
