"""What a trained model carries, and how fast it reads and writes."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from seriatim.core import state as states
from seriatim.core.mixer import Mixer
from seriatim.decoding.generate import SEGMENT, generate
from seriatim.decoding.sampler import Sampler

__all__ = ["read_growing", "write"]


@torch.no_grad()
def read_growing(model: Mixer, tokens: Tensor, lengths: Sequence[int]) -> list[dict[str, float]]:
    """Reads the first `length` of tokens (T,), each length afresh: bytes of state after it, tokens read a second."""
    rows = []
    model(tokens[None, :SEGMENT], None)  # the first call of anything is slow
    for length in lengths:
        state, start = model.init_state(1), time.perf_counter()
        for part in tokens[:length].split(SEGMENT):
            _, state = model(part[None], state)
        seconds = time.perf_counter() - start
        rows.append({"tokens": length, "state_bytes": states.nbytes(state), "tokens_per_second": length / seconds})
    return rows


def write(
    model: Mixer,
    prompt: Sequence[int],
    tokens: int,
    sampler: Sampler,
    begin: int,
    seed: int,
    show: Callable[[int], Any],
) -> float:
    """Writes `tokens` tokens after the prompt, gives each to `show` as it comes, and returns tokens a second."""
    generator = torch.Generator().manual_seed(seed)
    writing = generate(model, [prompt], tokens=tokens, sampler=sampler, generator=generator, begin=begin)
    start = time.perf_counter()
    for written in writing:
        show(int(written.ids[0]))
    return tokens / (time.perf_counter() - start)
