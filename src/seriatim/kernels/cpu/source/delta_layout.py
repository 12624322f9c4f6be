"""The memory that the delta rule's kernels work in: sizes, for what makes room for it and for what uses it.

Plain Python, so that both can read it. K and V are the sizes of keys and values, rounded up to whole vectors of any
machine, C the tokens of a chunk, and W the writers of a token: 1, its key, that reads too, or 2, apart from what reads.
Where two are named, those of one writer follow those of the other.
"""

from collections.abc import Callable

__all__ = ["CHUNK", "CHUNK_FIELDS", "GRADIENT_FIELDS", "WORK_FIELDS", "layout", "padded"]

CHUNK = 16  # tokens; see seriatim.kernels.cpu.delta_scan
PAD = 16

Sizes = dict[str, Callable[[int, int, int, int], int]]

# What a chunk's forward pass leaves for its backward pass.
CHUNK_FIELDS: Sizes = {
    "pair": lambda K, V, C, W: 2 * C * K,  # keys, or what reads in their place, then queries times the scale
    "writers": lambda K, V, C, W: (W - 1) * 2 * C * K,  # of two, both; one is the keys of `pair`, and lies there
    "first": lambda K, V, C, W: 2 * C * K,  # `pair`, faded from the chunk's start, per key feature
    "last": lambda K, V, C, W: W * C * K,  # writers, faded to the chunk's end, per key feature
    "decays": lambda K, V, C, W: C * K,  # of each token and key feature; per head see delta_decays
    "scores": lambda K, V, C, W: W * 2 * C * C,  # of keys with writers, then of queries with writers
    "between": lambda K, V, C, W: C * C,  # decays between tokens, per head
    "inverse": lambda K, V, C, W: C * C,
    "beta": lambda K, V, C, W: C,
    "total": lambda K, V, C, W: K,  # the decay over the chunk
    "errors": lambda K, V, C, W: W * C * V,  # what a token's key recalls, less its value; then values
    "start": lambda K, V, C, W: K * V,  # the state that the chunk begins with
}

# What the forward pass of every chunk works in.
WORK_FIELDS: Sizes = {
    "right": lambda K, V, C, W: C * max(K, V),  # keys transposed (K, C), then the right hand sides, then outputs (C, V)
    "written": lambda K, V, C, W: W * C * V,
    "system": lambda K, V, C, W: C * C,
    "spare": lambda K, V, C, W: C * C,
    "state": lambda K, V, C, W: K * V,
}

# What the backward pass of every chunk works in.
GRADIENT_FIELDS: Sizes = {
    "outer": lambda K, V, C, W: (2 + W) * C * V,  # gradients in the errors, then in the outputs, then what is written
    "outer_transposed": lambda K, V, C, W: (2 + W) * C * V,
    "rows": lambda K, V, C, W: (1 + W) * C * V,  # what is written, then solved; then two thirds of outer with decays
    "beta": lambda K, V, C, W: C,
    "scores": lambda K, V, C, W: W * 2 * C * C,
    "transposed": lambda K, V, C, W: 2 * C * K,  # first, then last
    "first": lambda K, V, C, W: 2 * C * K,
    "last": lambda K, V, C, W: W * C * K,
    "pair": lambda K, V, C, W: 2 * C * K,
    "writers": lambda K, V, C, W: (W - 1) * 2 * C * K,
    "logs": lambda K, V, C, W: C * K,  # log decays
    "chain": lambda K, V, C, W: C * K,  # a writer on its way through the chunk
    "total": lambda K, V, C, W: K,
    "state": lambda K, V, C, W: K * V,
}


def padded(n: int) -> int:
    """n, rounded up to whole vectors."""
    return -(-n // PAD) * PAD


def layout(keys: int, values: int, writers: int, chunks: int, gradients: bool) -> list[int]:
    """Where everything lies, in float32s: the fields of a chunk from its start, how long it is, the fields behind so
    many chunks, of which those of gradients may be left out, and how long it all is."""
    K, V = padded(keys), padded(values)
    places = _places(CHUNK_FIELDS, K, V, writers, 0)
    places += _places(WORK_FIELDS, K, V, writers, chunks * places[-1])
    return places[:-1] + _places(GRADIENT_FIELDS if gradients else {}, K, V, writers, places[-1])


def _places(fields: Sizes, K: int, V: int, W: int, begin: int) -> list[int]:
    """Where the fields lie that begin there, and where they end."""
    places = [begin]
    for size in fields.values():
        places.append(places[-1] + size(K, V, CHUNK, W))
    return places
