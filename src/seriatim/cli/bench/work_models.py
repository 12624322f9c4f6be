"""Whole models: training steps, reading a prompt, writing. Both sides get the same tokens and batch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seriatim.cli.bench import counts, peers
from seriatim.cli.bench.clock import fastest
from seriatim.cli.bench.copies import copy_mamba, copy_mamba2
from seriatim.cli.bench.work import Pair, Peer, Target, Work, sizes
from seriatim.decoding.generate import generate
from seriatim.decoding.sampler import Sampler
from seriatim.models.language_model import LanguageModel

__all__ = ["works"]

VOCAB, DIM, LAYERS = 257, 256, 4
HF_NAMES = {"blocks": "backbone.layers", "norm": "backbone.norm_f", "embedding": "backbone.embeddings"}
MAMBAPY_NAMES = {"blocks": "stack.layers", "norm": "norm", "embedding": "embedding"}
HF_MAMBA = Peer("transformers' Mamba", ("transformers",))


def works(quick: bool) -> list[Work]:
    """The rows."""
    time, step = (64, 512) if quick else (512, 8192)
    found = [
        _prefill(2, time),
        _writing(8 if quick else 64),
        _mamba_training("mambapy", 2, time, Target(10)),
        _mamba_training("transformers, use_mambapy", 2, time, None),
        _mamba_training("transformers", 1, time, None),
        _mamba_training("transformers", 2, time, Target(300)),
        _mamba2_training(2, time, (256,), Target(8)),
        _mamba2_training(2, time, (32, 64, 128), None),
        _mamba2_training(2, time, (256,), None, half=True),
    ]
    for mixer in ("gla", "mamba"):
        found += [
            _against_llama(mixer, step // length, length, least)
            for length, least in ((step // 16, 1.0), (step // 4, 1.0), (step, 3.0))
        ]
    return found


def _mamba() -> LanguageModel:
    return LanguageModel(VOCAB, dim=DIM, layers=["mamba"] * LAYERS, feed_forward="none")


def _tokens(batch: int, time: int) -> Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(0))


def _step(model: nn.Module, logits: Callable[[Tensor], Tensor], tokens: Tensor) -> Callable[[], None]:
    """A training step: the loss of the next token, its gradients, AdamW in one pass."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(logits(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimiser.step()

    return step


def _first_gradients(
    model: nn.Module, logits: Callable[[Tensor], Tensor], tokens: Tensor, embedding: str
) -> list[Tensor]:
    """The logits, and the embedding's gradient, into which those of all layers have flowed."""
    model.zero_grad()
    out = logits(tokens)
    F.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradient = model.get_parameter(embedding).grad
    assert gradient is not None
    return [out.detach(), gradient]


def _mamba_flops(model: nn.Module, tokens: int) -> float:
    return counts.linear(model, tokens) + LAYERS * counts.selective(tokens, 2 * DIM, 16)


def _mamba_training(package: str, batch: int, time: int, target: Target | None) -> Work:
    def make() -> Pair:
        torch.manual_seed(0)
        ours, tokens = _mamba().train(), _tokens(batch, time)
        peer: nn.Module
        if package == "mambapy":
            peer, names = peers.mambapy_mamba(VOCAB, DIM, LAYERS), MAMBAPY_NAMES
        else:
            peer, names = peers.mamba(VOCAB, DIM, LAYERS, use_mambapy=package.endswith("mambapy")), HF_NAMES
        peer.train()
        copy_mamba(ours, peer, names)

        def own_logits(tokens: Tensor) -> Tensor:
            return ours(tokens)[0]

        def peer_logits(tokens: Tensor) -> Tensor:
            out = peer(tokens)
            return out if isinstance(out, Tensor) else out.logits

        short = tokens[:, : max(16, time // 8)]  # a whole step of the slowest peer takes long

        def compare() -> tuple[list[Tensor], list[Tensor]]:
            own = _first_gradients(ours, own_logits, short, "embedding.weight")
            return own, _first_gradients(peer, peer_logits, short, f"{names['embedding']}.weight")

        return Pair(
            ours=_step(ours, own_logits, tokens),
            peer=_step(peer, peer_logits, tokens),
            path=paths[package],
            compare=compare,
            flops=counts.training(_mamba_flops(ours, batch * time)),
            parameters=peers.both(ours, peer),
        )

    paths = {
        "mambapy": "mambapy.mamba.Mamba with pscan=True, between the same embedding and head",
        "transformers": "MambaForCausalLM as it comes: a loop over time",
        "transformers, use_mambapy": "MambaForCausalLM with use_mambapy=True",
    }
    peer = Peer("mambapy", ("mambapy",)) if package == "mambapy" else HF_MAMBA
    if package.endswith("use_mambapy"):
        peer = Peer("transformers' Mamba on mambapy's scan", ("transformers", "mambapy"))
    shape = f"{LAYERS} layers, dim {DIM}, {sizes(B=batch, T=time)}"
    return Work("Mamba, training step", shape, peer, make, target, weight=8 if package == "transformers" else 2)


def _mamba2_training(batch: int, time: int, chunks: tuple[int, ...], target: Target | None, half: bool = False) -> Work:
    """transformers' Mamba-2 with the fastest of some chunk sizes; by itself it has 256. With `half`, both sides' steps
    are under bfloat16 autocast; what is compared before is float32."""
    states, width = 128, 64

    def make() -> Pair:
        torch.manual_seed(0)
        options = {"mixer": "mamba2", "state_size": states, "head_dim": width}
        ours = LanguageModel(VOCAB, dim=DIM, layers=[options] * LAYERS, feed_forward="none").train()
        peer, tokens = peers.mamba2(VOCAB, DIM, LAYERS, states, width).train(), _tokens(batch, time)
        copy_mamba2(ours, peer, HF_NAMES)
        mixers: list[Any] = [module for module in peer.modules() if hasattr(module, "chunk_size")]

        def own_logits(tokens: Tensor) -> Tensor:
            return ours(tokens)[0]

        def peer_logits(tokens: Tensor) -> Tensor:
            logits: Tensor = peer(tokens).logits
            return logits

        def cast(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
            return torch.autocast("cpu", torch.bfloat16)(logits) if half else logits

        def with_chunks(size: int) -> Callable[[], None]:
            step = _step(peer, cast(peer_logits), tokens)

            def run() -> None:
                for mixer in mixers:
                    mixer.chunk_size = size
                step()

            return run

        def compare() -> tuple[list[Tensor], list[Tensor]]:
            copy_mamba2(ours, peer, HF_NAMES)  # choosing a chunk size has trained the peer
            own = _first_gradients(ours, own_logits, tokens, "embedding.weight")
            return own, _first_gradients(peer, peer_logits, tokens, "backbone.embeddings.weight")

        sides = {size: with_chunks(size) for size in chunks}
        best = fastest(sides) if len(sides) > 1 else chunks[0]
        scan = counts.chunked_matrix(batch * time, 2 * DIM // width, states, width) * LAYERS
        of = f", the fastest of {', '.join(map(str, chunks))}" if len(chunks) > 1 else ", its default"
        return Pair(
            ours=_step(ours, cast(own_logits), tokens),
            peer=sides[best],
            path=f"Mamba2ForCausalLM, chunk_size {best}{of}",
            compare=compare,
            flops=0.0 if half else counts.training(counts.linear(ours, batch * time) + scan),  # the peak is float32's
            parameters=peers.both(ours, peer),
        )

    shape = f"{LAYERS} layers, dim {DIM}, {sizes(B=batch, T=time)}" + (", best chunks" if len(chunks) > 1 else "")
    shape += ", bfloat16 autocast" if half else ""
    return Work(
        "Mamba-2, training step", shape, Peer("transformers' Mamba-2", ("transformers",)), make, target, weight=2
    )


def _prefill(batch: int, time: int) -> Work:
    def make() -> Pair:
        torch.manual_seed(0)
        ours, peer, tokens = _mamba().eval(), peers.mamba(VOCAB, DIM, LAYERS).eval(), _tokens(batch, time)
        copy_mamba(ours, peer, HF_NAMES)

        @torch.no_grad()
        def own() -> Any:
            return ours(tokens)

        @torch.no_grad()
        def other() -> Any:
            return peer(tokens, use_cache=True)

        return Pair(
            ours=own,
            peer=other,
            path="MambaForCausalLM with use_cache=True: a loop over time",
            compare=lambda: ([own()[0]], [other().logits]),
            flops=_mamba_flops(ours, batch * time),
            parameters=peers.both(ours, peer),
        )

    return Work(
        "Mamba, reading a prompt", f"{LAYERS} layers, dim {DIM}, {sizes(B=batch, T=time)}", HF_MAMBA, make, Target(4)
    )


def _writing(tokens: int) -> Work:
    def make() -> Pair:
        torch.manual_seed(0)
        ours, peer, prompt = _mamba().eval(), peers.mamba(VOCAB, DIM, LAYERS).eval(), _tokens(1, 8)
        copy_mamba(ours, peer, HF_NAMES)
        greedy = Sampler(temperature=0)

        def own() -> list[int]:
            return [int(written.ids[0]) for written in generate(ours, [prompt[0]], tokens=tokens, sampler=greedy)]

        @torch.no_grad()
        def other() -> Tensor:
            written: Tensor = peer.generate(prompt, max_new_tokens=tokens, do_sample=False, use_cache=True)  # type: ignore[operator]
            return written[0, prompt.size(1) :]

        return Pair(
            ours=own,
            peer=other,
            path="MambaForCausalLM.generate, greedy, use_cache=True",
            compare=lambda: ([torch.tensor(own())], [other()]),
            tolerance=0.0,
            flops=_mamba_flops(ours, tokens),
            bytes=4.0 * tokens * peers.parameters(ours),  # every weight is read for every token
            parameters=peers.both(ours, peer),
        )

    shape = f"{LAYERS} layers, dim {DIM}, B 1, {tokens} tokens after 8"
    return Work("Mamba, writing", shape, HF_MAMBA, make, Target(8))


def _against_llama(mixer: str, batch: int, time: int, least: float) -> Work:
    def make() -> Pair:
        torch.manual_seed(0)
        ours = LanguageModel(VOCAB, dim=DIM, layers=["gla"] * LAYERS) if mixer == "gla" else _mamba()
        peer = peers.llama(VOCAB, DIM, LAYERS, 4, peers.parameters(ours), time)
        tokens = _tokens(batch, time)
        scan = counts.chunked_matrix(batch * time, 4, DIM // 8, DIM // 4) * LAYERS
        forward = _mamba_flops(ours, batch * time) if mixer == "mamba" else counts.linear(ours, batch * time) + scan
        return Pair(
            ours=_step(ours, lambda tokens: ours(tokens)[0], tokens),
            peer=_step(peer, lambda tokens: peer(tokens).logits, tokens),
            path="LlamaForCausalLM on scaled_dot_product_attention, width chosen for equal parameters",
            flops=counts.training(forward),
            parameters=peers.both(ours, peer),
        )

    name = {"gla": "GLA", "mamba": "Mamba"}[mixer]
    shape = f"{LAYERS} layers, dim {DIM}, {sizes(B=batch, T=time)}"
    return Work(
        f"{name} model, training step",
        shape,
        Peer("transformers' Llama", ("transformers",)),
        make,
        Target(least),
        weight=4,
    )
