"""The memory that the kernels of matrix_scan work in. Plain Python, so that who makes room for it can read it."""

__all__ = ["TOKENS_PER_KEY", "backward_sizes", "forward_sizes"]

TOKENS_PER_KEY = 16  # of a chunk under a decay for every key: the lanes of a vector, or of several

PAD = 16  # numbers: places are as far apart as a line of the cache


def forward_sizes(chunk, keys, values):
    """How many numbers each place has, for chunks of so many tokens, a multiple of PAD."""
    K, V = (keys + PAD - 1) // PAD * PAD, (values + PAD - 1) // PAD * PAD
    return (
        chunk,  # log decays, per head
        chunk,  # the decay from the piece's start to every token, per head
        chunk,  # the decay from every token to the piece's end, per head
        K,  # the decay over the piece
        K,  # the same, less 1
        chunk * K,  # decays of every token, per key
        chunk * K,  # queries, scaled, per key
        chunk * K,  # queries, faded from the piece's start
        chunk * K,  # keys, faded to its end
        chunk * K,  # keys, transposed
        chunk * chunk,  # scores
        chunk * chunk,  # decays between tokens, per head
        K * V,  # what the piece writes to the state
    )


def backward_sizes(chunk, keys, values, chunks):
    """What the backward pass needs beside that; `chunks` states are computed again at a time."""
    K, V = (keys + PAD - 1) // PAD * PAD, (values + PAD - 1) // PAD * PAD
    return (
        chunk * chunk,  # gradients in the scores
        chunk * V,  # values, transposed
        chunk * V,  # gradients in the outputs, transposed
        chunk * K,  # gradients in queries or keys, transposed
        K,  # what the state before the piece gives to the one after it, times the gradient there
        chunk,  # sums over the scores' columns
        chunks * K * V,  # states
    )
