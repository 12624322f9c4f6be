"""The memory that the kernels of shared_scan work in. Plain Python, so that who makes room for it can read it."""

from seriatim.kernels.cpu.source.matrix_layout import PAD

__all__ = ["TOKENS", "backward_sizes", "forward_sizes"]

TOKENS = 64  # of a chunk: as wide as the tiles of a product, and no state takes more memory than its chunk's values


def forward_sizes(chunk, keys, values):
    """How many numbers each place has, for chunks of so many tokens, a multiple of PAD."""
    K, V = (keys + PAD - 1) // PAD * PAD, (values + PAD - 1) // PAD * PAD
    return (
        chunk,  # log decays
        chunk,  # the scale times the decay from the piece's start to every token
        chunk,  # the decay from every token to the piece's end
        PAD,  # the decay over the piece
        PAD,  # the same, less 1
        chunk * K,  # queries
        chunk * K,  # keys
        chunk * K,  # keys, transposed
        chunk * chunk,  # products of queries and keys
        chunk * chunk,  # the scale times the decays between tokens; forward then the scores
        chunk * V,  # values or gradients of outputs, faded
        K * V,  # what the piece writes to the state
    )


def backward_sizes(chunk, keys, values):
    """What the backward pass needs beside that."""
    K, V = (keys + PAD - 1) // PAD * PAD, (values + PAD - 1) // PAD * PAD
    return (
        chunk * K,  # queries, transposed
        chunk * K,  # the sum over heads of gradients in queries, transposed
        chunk * K,  # the same in keys
        chunk * K,  # one head's gradients in queries, transposed
        chunk * chunk,  # the sum over heads of gradients in products
        chunk * chunk,  # scores
        chunk * chunk,  # gradients in scores
        chunk * (V + 1),  # values or gradients of outputs, transposed; then sums over the columns of scores
    )
