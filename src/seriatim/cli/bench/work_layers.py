"""Single layers, forward and backward."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from seriatim.cli.bench import counts, peers
from seriatim.cli.bench.copies import copy_recurrent
from seriatim.cli.bench.differentiated import Differentiated, draw
from seriatim.cli.bench.work import Pair, Peer, Target, Work, sizes
from seriatim.core.build import build

__all__ = ["works"]

DIM = 256


def works(quick: bool) -> list[Work]:
    """The rows."""
    shorter = 8 if quick else 1
    found = [
        _recurrent(kind, batch, time // shorter, least)
        for kind, least in (("lstm", 1.5), ("gru", 2.0))
        for batch in (8, 32)
        for time in (256, 512)
    ]
    return [*found, _memory(2, 512 // shorter)]


def _recurrent(kind: str, batch: int, time: int, least: float) -> Work:
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU}[kind]

    def make() -> Pair:
        torch.manual_seed(0)
        ours, peer = build(kind, dim=DIM), theirs(DIM, DIM)
        copy_recurrent(ours, peer)
        x, cotangent = draw(0, batch, time, DIM), draw(9, batch, time, DIM)
        first = _read(ours, x, cotangent, ("input.weight", "recurrent"))
        across, back = (z.transpose(0, 1).contiguous() for z in (x, cotangent))
        second = _read(peer, across, back, ("weight_ih_l0", "weight_hh_l0"))

        def compare() -> tuple[list[Tensor], list[Tensor]]:
            own, (out, d_x, d_input, d_recurrent) = first()[:4], second()[:4]
            return own, [out.transpose(0, 1), d_x.transpose(0, 1), d_input, d_recurrent.view_as(own[3])]

        gates = int(ours.gates)
        return Pair(
            ours=first,
            peer=second,
            path=f"torch.nn.{theirs.__name__}, (time, batch, dim)",
            compare=compare,
            flops=counts.training(counts.linear(ours, batch * time) + counts.cell(batch * time, gates, 1, DIM)),
            bytes=first.bytes(cotangent),
            parameters=peers.both(ours, peer),
        )

    shape = f"dim {DIM}, {sizes(B=batch, T=time)}"
    return Work(
        f"{kind.upper()} layer, forward and backward", shape, Peer(f"torch.nn.{theirs.__name__}"), make, Target(least)
    )


def _read(layer: nn.Module, x: Tensor, cotangent: Tensor, names: Sequence[str] = ()) -> Differentiated:
    """A layer's output; its gradients of x, of the parameters of these names, and of all others it reads."""
    named = dict(layer.named_parameters())
    parameters = [named.pop(name) for name in names] + list(named.values())
    found = torch.autograd.grad(layer(x)[0].sum(), parameters, allow_unused=True)
    used = [parameter for parameter, gradient in zip(parameters, found, strict=True) if gradient is not None]
    return Differentiated(lambda x: layer(x)[0], [x], cotangent=cotangent, parameters=used)


def _memory(batch: int, time: int) -> Work:
    wider = DIM + 64  # so that both have about as many parameters

    def make() -> Pair:
        torch.manual_seed(0)
        ours, peer = build("gla", dim=wider, heads=4), peers.titans_memory(DIM, 4, 64)
        return Pair(
            ours=_read(ours, draw(0, batch, time, wider), draw(9, batch, time, wider)),
            peer=_read(peer, draw(0, batch, time, DIM), draw(9, batch, time, DIM)),
            path="NeuralMemory, 4 heads, chunk_size 64",
            flops=counts.training(counts.linear(ours, batch * time)),
            parameters=peers.both(ours, peer),
        )

    return Work(
        f"matrix memory (GLA, dim {wider}) beside a learned one (dim {DIM}), forward and backward",
        sizes(B=batch, T=time), Peer("titans-pytorch's NeuralMemory", ("titans-pytorch",)), make, None,
        "not the same function, but as many parameters",
    )  # fmt: skip
