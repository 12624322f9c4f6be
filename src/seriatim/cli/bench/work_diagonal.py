"""Diagonal recurrences of other packages beside our scan: the same function with the same numbers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from seriatim.cli.bench import counts, peers
from seriatim.cli.bench.differentiated import Differentiated, draw
from seriatim.cli.bench.work import Pair, Peer, Target, Work, sizes
from seriatim.cli.bench.work_ops import op_named

__all__ = ["works"]


def works(quick: bool) -> list[Work]:
    """The rows."""
    shorter = 8 if quick else 1
    return [_rg_lru(512 // shorter), _s5(4096 // shorter)]


def _rg_lru(time: int) -> Work:
    width, heads = 512, 4

    def make() -> Pair:
        scan, layer = op_named("diagonal_scan"), peers.rg_lru(width, heads)
        x, cotangent, positions = draw(0, 2, time, width), draw(9, 2, time, width), torch.arange(time)[None]
        names = [f"{gate}_gate_{kind}" for gate in ("input", "recurrent") for kind in ("weight", "bias")]
        names.append("recurrent_param")
        weights = [layer.get_parameter(name) for name in names]

        def ours(x: Tensor, *leaves: Tensor) -> Tensor:
            w_i, b_i, w_a, b_a, decay = leaves
            parts = x.unflatten(-1, (heads, -1))
            gate = (torch.einsum("bthi,hij->bthj", parts, w_i) + b_i).sigmoid().flatten(-2)
            log_a = -8 * (torch.einsum("bthi,hij->bthj", parts, w_a) + b_a).sigmoid().flatten(-2) * F.softplus(decay)
            share = (-torch.expm1(2 * log_a)).sqrt()
            first = torch.arange(time)[:, None] == 0  # its input is not scaled down
            out: Tensor = scan(log_a.exp(), x * gate * torch.where(first, 1.0, share))[0]
            return out

        def peer(x: Tensor, *leaves: Tensor) -> Tensor:
            layer.recurrent_states = None  # what it read before
            out: Tensor = torch.func.functional_call(layer, dict(zip(names, leaves, strict=True)), (x, positions))
            return out

        own, other = (Differentiated(side, [x, *weights], cotangent=cotangent) for side in (ours, peer))
        return Pair(
            ours=own,
            peer=other,
            path="RecurrentGemmaRglru, a loop over time",
            compare=lambda: (own(), other()),
            flops=counts.training(counts.diagonal(2 * time * width, False) + 4 * 2 * time * width * width / heads),
            bytes=own.bytes(cotangent),
        )

    return Work(
        "RG-LRU by diagonal_scan, forward and backward", sizes(B=2, T=time, F=width, H=heads),
        Peer("transformers' RecurrentGemma", ("transformers",)), make,
    )  # fmt: skip


def _s5(time: int) -> Work:
    states = 128

    def make() -> Pair:
        ours, theirs = op_named("diagonal_scan"), peers.s5_scan()
        eigenvalues = torch.polar(torch.linspace(0.9, 0.999, states), torch.linspace(0, 3, states))
        leaves = [torch.view_as_real(eigenvalues), draw(0, 2, time, states, 2)]
        cotangent = draw(9, 2, time, states, 2)

        def on(scan: Callable[[Tensor, Tensor], Tensor]) -> Differentiated:
            def run(A: Tensor, inputs: Tensor) -> Tensor:
                return torch.view_as_real(scan(torch.view_as_complex(A), torch.view_as_complex(inputs)))

            return Differentiated(run, leaves, cotangent=cotangent)

        own, other = on(lambda A, inputs: ours(A, inputs)[0]), on(theirs)
        return Pair(
            ours=own,
            peer=other,
            path="S5's associative_scan under torch.vmap",
            compare=lambda: (own(), other()),
            flops=counts.training(counts.diagonal(2 * time * states, True)),
            bytes=own.bytes(cotangent),
        )

    return Work(
        "S5's scan by diagonal_scan, forward and backward", sizes(B=2, T=time, N=states),
        Peer("s5-pytorch", ("s5-pytorch",)), make, Target(5),
    )  # fmt: skip
