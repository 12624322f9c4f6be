"""No rows, tokens, heads, keys or values: every backend gives the same, or refuses in the same words."""

import pytest
import torch

from seriatim import ops
from seriatim.core.errors import SeriatimError
from seriatim.core.state import leaves

SIZES = {"B": 2, "T": 3, "H": 2, "K": 4, "V": 5}
OPS = {
    "matrix_scan": lambda B, T, H, K, V: (
        lambda q, k, v, g: ops.matrix_scan(q, k, v, -g.exp()),
        [(B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H)],
    ),
    "delta_scan": lambda B, T, H, K, V: (
        lambda q, k, v, g: ops.delta_scan(q, k, v, g.sigmoid(), -g.exp()),
        [(B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H)],
    ),
    "dplr_scan": lambda B, T, H, K, V: (
        lambda q, k, v, g, r, w: ops.dplr_scan(q, k, v, -g.exp(), r, w),
        [(B, T, H, K), (B, T, H, K), (B, T, H, V), (B, T, H, K), (B, T, H, K), (B, T, H, K)],
    ),
    "attention": lambda B, T, H, K, V: (ops.attention, [(B, T, H, K), (B, T, H, K), (B, T, H, V)]),
    "softmax_scan": lambda B, T, H, K, V: (ops.softmax_scan, [(B, T, H), (B, T, H, V)]),
    "grid_scan": lambda B, T, H, K, V: (
        ops.grid_scan,
        [(B, T, T, H, K), (B, T, T, H, K), (B, T, T, H, V), (B, T, T, H, 2), (B, T, T, H, 2, 2), (B, T, T, H, 2)],
    ),
    "lstm": lambda B, T, H, K, V: (lambda x, u: ops.cell_scan("lstm", x, u), [(B, T, 4, H, K), (4, H, K, K)]),
    "slstm": lambda B, T, H, K, V: (lambda x, u: ops.cell_scan("slstm", x, u), [(B, T, 4, H, K), (4, H, K, K)]),
    "selective_scan": lambda B, T, H, K, V: (
        lambda x, delta, A, b, c: ops.selective_scan(x, delta.exp(), -A.exp(), b, c),
        [(B, T, H), (B, T, H), (H, K), (B, T, K), (B, T, K)],
    ),
    "diagonal_scan": lambda B, T, H, K, V: (lambda a, b: ops.diagonal_scan(a, b), [(B, T, H, K), (B, T, H, K)]),
    "short_conv": lambda B, T, H, K, V: (lambda x, w: ops.short_conv(x, w), [(B, T, H), (H, 4)]),
}


def found(run, shapes, name):
    """Shapes and sums of outputs, state and gradients, or the words of the refusal."""
    torch.manual_seed(0)
    inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
    with ops.backend(name):
        try:
            y, state = run(*inputs)
        except SeriatimError as error:
            return str(error)
        total = sum((leaf.sum() for _, leaf in leaves((y, state)) if leaf.is_floating_point()), torch.zeros(()))
        grads = [torch.zeros_like(z) for z in inputs]
        if total.requires_grad:
            grads = list(torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True))
    everything = [leaf for _, leaf in leaves((y, state))] + grads
    return [
        (tuple(z.shape) if z.numel() else 0, round(float(z.detach().double().nan_to_num().sum()), 3))
        for z in everything
    ]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dimension", SIZES)
def test_a_dimension_of_0(op, dimension):
    run, shapes = OPS[op](**SIZES | {dimension: 0})
    wanted = found(run, shapes, "reference")
    for name in ("torch", "cpu"):
        assert found(run, shapes, name) == wanted


@pytest.mark.parametrize("op", OPS)
def test_a_wrong_shape_is_refused_in_the_same_words_by_all(op):
    run, shapes = OPS[op](**SIZES)
    for wrong in range(len(shapes)):
        longer = [(*shape[:-1], shape[-1] + 1) if index == wrong else shape for index, shape in enumerate(shapes)]
        if len({shape[-1] for shape in shapes if len(shape) == len(shapes[wrong])}) == len(shapes):
            continue  # a dimension of its own, which may have any size
        wanted = found(run, longer, "reference")
        assert found(run, longer, "torch") == found(run, longer, "cpu") == wanted
