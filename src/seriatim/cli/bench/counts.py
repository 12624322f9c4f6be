"""Operations of a piece of work, however an algorithm goes about it.

A recurrence asks for a few operations a token. Matrix memories are counted by their chunked form instead, with chunks
of CHUNK tokens and causal products by half, whatever chunks a kernel chooses: it is matrix products, which is what the
peak is measured with. A gradient counts as twice the forward pass; states computed again for it do not count.
"""

from torch import nn

__all__ = [
    "CHUNK",
    "attention",
    "cauchy",
    "cell",
    "chunked_delta",
    "chunked_matrix",
    "delta",
    "diagonal",
    "grid",
    "linear",
    "matrix",
    "selective",
    "softmax",
    "training",
]

CHUNK = 64


def training(forward: float) -> float:
    """Forward and backward."""
    return 3 * forward


def matrix(tokens: int, heads: int, keys: int, values: int, decays: bool) -> float:
    """S = diag(a) S + k v^T and S^T q."""
    return tokens * heads * keys * values * (5 if decays else 4)


def delta(tokens: int, heads: int, keys: int, values: int, decays: bool) -> float:
    """S = diag(a) S, S^T k, S + k e^T and S^T q."""
    return tokens * heads * keys * values * (7 if decays else 6)


def chunked_matrix(tokens: int, heads: int, keys: int, values: int) -> float:
    """The same by chunks: scores and what they read within a chunk, a read and a write of the memory."""
    return tokens * heads * (4 * keys * values + CHUNK * (keys + values))


def chunked_delta(tokens: int, heads: int, keys: int, values: int) -> float:
    """The same by chunks: scores of keys and of queries, a triangular solve for keys and values, what the scores read
    within a chunk, two reads and a write of the memory."""
    return tokens * heads * (6 * keys * values + CHUNK * (3 * keys + 2 * values))


def diagonal(elements: int, is_complex: bool) -> float:
    """h = a h + b."""
    return elements * (8 if is_complex else 2)


def cauchy(fractions: float, products: int) -> float:
    """1 / (z - w) and 1 / (z - w*), and of each product a complex multiple of both added up."""
    return fractions * 2 * (11 + 8 * products)


def selective(tokens: int, channels: int, states: int) -> float:
    """exp(delta A), h = a h + u B, C.h; an exponential counts as one."""
    return tokens * channels * (7 * states + 3)


def softmax(tokens: int, heads: int, dim: int) -> float:
    """Two exponentials, w = a w + e v, w / c."""
    return tokens * heads * (4 * dim + 8)


def grid(nodes: int, heads: int, keys: int, values: int) -> float:
    """Of two memories a node: T C, C + s k v^T and C^T q."""
    return nodes * heads * keys * values * 14


def cell(tokens: int, gates: int, heads: int, dim: int) -> float:
    """The recurrent products."""
    return tokens * heads * 2 * gates * dim * dim


def attention(tokens: int, heads: int, seen: int, keys: int, values: int) -> float:
    """Scores and sums over the tokens seen."""
    return tokens * heads * 2 * seen * (keys + values)


def linear(module: nn.Module, tokens: int) -> float:
    """The matrix products of all linear layers, the head included."""
    return sum(2 * tokens * m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
