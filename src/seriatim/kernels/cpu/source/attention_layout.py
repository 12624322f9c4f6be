"""The memory that attention's kernels work in. Plain Python, for those who make room for it and those who use it."""

__all__ = ["QUERIES", "backward_size", "forward_size"]

QUERIES = 64  # in a block: as wide as the widest tile of a product, and whole vectors on every machine


def forward_size(inner, keys):
    """How many numbers: queries, transposed; scores; from and to which query a key is seen; lines of one a query."""
    return QUERIES * inner + QUERIES * keys + 2 * keys + 5 * QUERIES


def backward_size(inner, columns, keys):
    """What comes behind these: the outputs' gradients, transposed, and the scores' gradients."""
    return forward_size(inner, keys) + QUERIES * columns + QUERIES * keys
