"""Our ops against the same recurrences in other packages: their functions, on the same numbers in their own layout."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.cli.bench import counts, peers
from seriatim.cli.bench.clock import fastest
from seriatim.cli.bench.differentiated import Differentiated, draw, drawn
from seriatim.cli.bench.work import Pair, Peer, Target, Work, sizes
from seriatim.cli.bench.work_ops import delta_inputs, op_named, require_cell
from seriatim.ops.backend import backend

__all__ = ["works"]

CHUNKS = (32, 64, 128)  # that a peer may choose from


def works(quick: bool) -> list[Work]:
    """The rows."""
    shorter = 8 if quick else 1
    return [
        _mlstm(2048 // shorter, "native_autograd"),
        _mlstm(2048 // shorter, "native_custbw"),
        _mamba2(2048 // shorter),
        _gated_delta(2048 // shorter),
        _slstm(256 // shorter),
        _loop("equation", 8, 4, 16, 512 // shorter),
        *(_loop("batched", *sizes, 512 // shorter) for sizes in ((1, 4, 16), (16, 16, 16), (16, 12, 64))),
    ]


def _heads_first(*tensors: Tensor) -> list[Tensor]:
    """(B, T, H, ...) to (B, H, T, ...), in memory."""
    return [z.transpose(1, 2).contiguous() for z in tensors]


def _chosen(best: int, of: Iterable[int]) -> str:
    return f"chunk_size {best}, the fastest of {', '.join(map(str, of))}"


def _mlstm(time: int, name: str) -> Work:
    """The peer's own backward pass is its fastest; it holds the normaliser constant, as then do we."""
    heads, dim, constant = 4, 64, name == "native_custbw"

    def make() -> Pair:
        scan, kernel = op_named("matrix_scan"), peers.mlstm_chunkwise(f"chunkwise--{name}")
        q, k, v, i, f = drawn(*[(2, time, heads, dim)] * 3, *[(2, time, heads)] * 2)
        leaves, cotangent = [q, k, v, i, f + 3], draw(9, 2, time, heads, dim)

        def ours(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
            values = F.pad(v, (0, 1), value=1.0)  # the last column sums the keys: the normaliser
            o = scan(q, k * i.exp().unsqueeze(-1), values, F.logsigmoid(f), scale=dim**-0.5)[0]
            normaliser = o[..., -1:].abs().clamp(min=1)
            return o[..., :-1] / (normaliser.detach() if constant else normaliser)

        def peer(chunk: int) -> Differentiated:
            def run(q: Tensor, k: Tensor, v: Tensor, i: Tensor, f: Tensor) -> Tensor:
                out: Tensor = kernel(q=q, k=k, v=v, i=i, f=f, chunk_size=chunk)
                return out

            return Differentiated(run, _heads_first(*leaves), cotangent=_heads_first(cotangent)[0])

        own = Differentiated(ours, leaves, cotangent=cotangent)
        sides = {chunk: peer(chunk) for chunk in CHUNKS if time % chunk == 0}
        best = fastest(sides)
        shape = (2 * time, heads, dim, dim)
        return Pair(
            ours=own,
            peer=sides[best],
            path=f"mlstm_kernels 'chunkwise--{name}', {_chosen(best, sides)}",
            compare=lambda: (own(), _heads_first(*sides[best]())),
            flops=counts.training(counts.chunked_matrix(*shape)),
            least_flops=counts.training(counts.matrix(*shape, True)),
            bytes=own.bytes(cotangent),
        )

    return Work(
        f"mLSTM by matrix_scan{', normaliser held constant' if constant else ''}, forward and backward",
        sizes(B=2, T=time, H=heads, K=dim, V=dim), Peer("xlstm's mLSTM", ("mlstm_kernels",)), make, Target(3),
        "our time includes its gates and normaliser",
    )  # fmt: skip


def _mamba2(time: int) -> Work:
    heads, dim = 4, 64

    def make() -> Pair:
        scan, kernel = op_named("matrix_scan"), peers.mamba2_scan()
        x, dt, B, C = drawn((2, time, heads, dim), (2, time, heads), *[(2, time, heads, dim)] * 2)
        A = -torch.linspace(0.5, 4.0, heads)
        leaves, cotangent = [x, F.softplus(dt - 3), B / 8, C], draw(9, 2, time, heads, dim)

        def ours(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
            out: Tensor = scan(C, B, x * dt.unsqueeze(-1), dt * A)[0]
            return out

        def peer(chunk: int) -> Differentiated:
            def run(x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> Tensor:
                out: Tensor = kernel(x, dt, A, B, C, chunk)
                return out

            return Differentiated(run, leaves, cotangent=cotangent)

        own, sides = Differentiated(ours, leaves, cotangent=cotangent), {chunk: peer(chunk) for chunk in CHUNKS}
        best, shape = fastest(sides), (2 * time, heads, dim, dim)
        return Pair(
            ours=own,
            peer=sides[best],
            path=f"Mamba-2's mamba2_chunk_scan in PyTorch, {_chosen(best, sides)}",
            compare=lambda: (own(), sides[best]()),
            flops=counts.training(counts.chunked_matrix(*shape)),
            least_flops=counts.training(counts.matrix(*shape, True)),
            bytes=own.bytes(cotangent),
        )

    return Work(
        "Mamba-2's scan by matrix_scan, forward and backward", sizes(B=2, T=time, H=heads, K=dim, V=dim),
        Peer("transformers' Mamba-2", ("transformers",)), make,
    )  # fmt: skip


def _gated_delta(time: int) -> Work:
    heads, dim = 4, 64

    def make() -> Pair:
        scan, kernel = op_named("delta_scan"), peers.gated_delta_rule()
        leaves, cotangent = delta_inputs(2, time, heads, dim, False), draw(9, 2, time, heads, dim)

        def ours(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
            out: Tensor = scan(q, k, v, beta, g, scale=dim**-0.5)[0]
            return out

        def peer(chunk: int) -> Differentiated:
            def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
                out: Tensor = kernel(q, k, v, g, beta, chunk_size=chunk)[0]
                return out

            return Differentiated(run, leaves, cotangent=cotangent)

        own, sides = Differentiated(ours, leaves, cotangent=cotangent), {chunk: peer(chunk) for chunk in CHUNKS}
        best, shape = fastest(sides), (2 * time, heads, dim, dim)
        return Pair(
            ours=own,
            peer=sides[best],
            path=f"Qwen3-Next's torch_chunk_gated_delta_rule, {_chosen(best, sides)}",
            compare=lambda: (own(), sides[best]()),
            flops=counts.training(counts.chunked_delta(*shape)),
            least_flops=counts.training(counts.delta(*shape, True)),
            bytes=own.bytes(cotangent),
        )

    return Work(
        "gated delta rule by delta_scan, forward and backward", sizes(B=2, T=time, H=heads, K=dim, V=dim),
        Peer("transformers' gated delta rule", ("transformers",)), make, Target(4),
    )  # fmt: skip


def _slstm(time: int) -> Work:
    heads, dim = 4, 64

    def make() -> Pair:
        require_cell("slstm")
        scan, cell = op_named("cell_scan"), peers.slstm_cell(heads * dim, heads)
        kernel, bias = (z.detach() for z in cell.parameters())  # (H, G D, D), (G H D)
        inputs, cotangent = draw(0, 8, time, 4, heads, dim), draw(9, 8, time, heads, dim)
        recurrent = kernel.view(heads, 4, dim, dim).transpose(0, 1).contiguous()

        def ours(x: Tensor, recurrent: Tensor, bias: Tensor) -> Tensor:
            out: Tensor = scan("slstm", x, recurrent, bias.view(4, heads, dim))[0]
            return out

        def peer(x: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
            names = (name for name, _ in cell.named_parameters())
            weights = dict(zip(names, (kernel, bias), strict=True))
            out: Tensor = torch.func.functional_call(cell, weights, (x.flatten(-3),))[0]
            return out.transpose(1, 2)

        own = Differentiated(ours, [inputs, recurrent, bias], cotangent=cotangent)
        other = Differentiated(peer, [inputs, kernel, bias], cotangent=cotangent)

        def compare() -> tuple[list[Tensor], list[Tensor]]:
            out, d_inputs, d_kernel, d_bias = other()
            return own(), [out, d_inputs, d_kernel.view(heads, 4, dim, dim).transpose(0, 1), d_bias]

        return Pair(
            ours=own,
            peer=other,
            path="sLSTMCell, backend 'vanilla'",
            compare=compare,
            flops=counts.training(counts.cell(8 * time, 4, heads, dim)),
            bytes=own.bytes(cotangent),
        )

    return Work(
        "sLSTM, forward and backward", sizes(B=8, T=time, H=heads, D=dim), Peer("xlstm's sLSTM", ("xlstm",)), make,
        Target(25),
    )  # fmt: skip


def _loop(kind: str, batch: int, heads: int, dim: int, time: int) -> Work:
    """Beside the equation as it is written, or beside the fastest loop that PyTorch's operations allow."""

    def make() -> Pair:
        scan = op_named("cell_scan")
        inputs, recurrent = drawn((batch, time, 4, heads, dim), (4, heads, dim, dim))
        cotangent = draw(9, batch, time, heads, dim)

        def ours(x: Tensor, weight: Tensor) -> Tensor:
            out: Tensor = scan("lstm", x, weight)[0]
            return out

        def equation(x: Tensor, weight: Tensor) -> Tensor:
            with backend("reference"):
                return ours(x, weight)

        leaves = [inputs, recurrent * dim**-0.5]
        loop = equation if kind == "equation" else peers.plain_lstm
        own, other = (Differentiated(side, leaves, cotangent=cotangent) for side in (ours, loop))
        return Pair(
            ours=own,
            peer=other,
            path=paths[kind],
            compare=lambda: (own(), other()),
            flops=counts.training(counts.cell(batch * time, 4, heads, dim)),
            bytes=own.bytes(cotangent),
        )

    paths = {
        "equation": "with ops.backend('reference'): the equation as a loop over time in PyTorch",
        "batched": "a loop over time in PyTorch, one batched product a token",
    }
    name = f"LSTM with {'small ' if dim < 64 else ''}heads by cell_scan, forward and backward"
    shape = sizes(B=batch, T=time, H=heads, D=dim)
    if kind == "equation":
        return Work(name, shape, Peer("a plain PyTorch loop"), make, Target(50))
    return Work(name, shape, Peer("a batched PyTorch loop"), make, None)
