"""SiLU gates and norms against float64, in values, first and second derivatives, wherever their rows lie."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from agreement import assert_close, few
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.guard import guarded
from seriatim.kernels.cpu.pointwise import rms_norm, silu_gate, swiglu
from seriatim.nn import pointwise as layers
from seriatim.nn.norms import RMSNorm, l2_norm
from seriatim.nn.pointwise import SMALL, gated, silu
from seriatim.ops import backend


def leaf(seed, *shape, size=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (size * torch.randn(*shape, generator=generator)).requires_grad_()


def held_against_float64(run, equation, inputs):
    """Values and gradients within 2e-6 of the equation's."""
    high = [z.detach().double().requires_grad_() for z in inputs]
    found, wanted = run(*inputs), equation(*high)
    above = leaf(9, *found.shape).detach()
    assert_close([found], [wanted], 2e-6, "value")
    found_grads = torch.autograd.grad(found, inputs, above)
    assert_close(found_grads, torch.autograd.grad(wanted, high, above.double()), 2e-6, "gradient")


@few
@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from([0.0, 1.0, 30.0]))
def test_gates(rows, features, size):
    inputs = leaf(1, 2, rows, features, size=size), leaf(2, 2, rows, features)
    held_against_float64(silu_gate, lambda gate, x: x * F.silu(gate), inputs)
    held_against_float64(lambda gate: silu_gate(gate, None), F.silu, inputs[:1])
    both = torch.cat([z.detach() for z in inputs], -1).requires_grad_()
    held_against_float64(swiglu, lambda z: F.silu(z.chunk(2, -1)[0]) * z.chunk(2, -1)[1], [both])


@few
@given(st.integers(1, 9), st.integers(1, 70), st.sampled_from([1e-4, 1.0, 1e4]))
def test_norms(rows, features, size):
    inputs = leaf(1, 2, rows, features, size=size), leaf(2, features)
    inputs = [z.detach().requires_grad_() for z in inputs]
    held_against_float64(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), inputs)


def test_rows_that_lie_apart():
    both = leaf(3, 4, 50, 2 * 33).detach()
    x, gate = (z.requires_grad_() for z in both.chunk(2, -1))
    held_against_float64(lambda g, z: silu_gate(g, z), lambda g, z: z * F.silu(g), (gate, x))
    wide = leaf(4, 33, 50).detach().mT.requires_grad_()
    held_against_float64(
        lambda z: rms_norm(z, torch.ones(33), 1e-5), lambda z: F.rms_norm(z, (33,), None, 1e-5), [wide]
    )


@pytest.mark.parametrize("rows", [3, SMALL])
@pytest.mark.parametrize("size", [0.0, 1e-3, 1.0, 1e4])
def test_lengths(rows, size):
    """In the few rows of one token, and in those many that the kernel reads."""
    wide = leaf(1, rows, 2, 3, size=size)  # the rows of a part lie apart
    found = l2_norm(wide[:, 0])
    high = wide.detach().double().requires_grad_()
    wanted = high[:, 0] / (high[:, 0].square().sum(-1, keepdim=True) + 1e-6).sqrt()
    assert_close([found], [wanted], 2e-6, "value")
    above = leaf(2, rows, 3).detach()
    (slope,), (exact,) = torch.autograd.grad(found, [wide], above), torch.autograd.grad(wanted, [high], above.double())
    assert_close([slope], [exact], 2e-6, "gradient")


def test_lengths_in_half_precision_are_not_rounded_above_one():
    found = l2_norm(leaf(1, 1000, 48).detach().bfloat16())
    assert found.dtype == torch.float32
    assert found.norm(dim=-1).max() < 1 + 1e-6


@pytest.mark.parametrize("module", [silu, lambda x: gated(x, 2 * x), layers.swiglu, RMSNorm(130)])
def test_layers_choose_by_size_and_backend_and_mean_the_same(module):
    for rows in (1, SMALL // 130 + 1):
        x = leaf(5, rows, 130)
        found = module(x)
        with backend("torch"):
            wanted = module(x)
        assert ("Silu" in str(found.grad_fn)) == ("Silu" in str(wanted.grad_fn)) or rows > 1
        assert torch.allclose(found, wanted, atol=1e-6)
    assert "seriatim" in str(found.grad_fn)


def test_second_derivatives_are_those_of_the_equation():
    x, gate, weight = leaf(6, 7, 40), leaf(7, 7, 40), leaf(8, 40)

    def twice(run, *inputs):
        first = torch.autograd.grad(run(*inputs).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(z.square().sum() for z in first), inputs)

    both = torch.cat([gate, x], -1).detach().requires_grad_()
    assert_close(twice(swiglu, both), twice(layers._swiglu, both), 1e-5, "both")
    assert_close(twice(silu_gate, gate, x), twice(lambda g, z: z * F.silu(g), gate, x), 1e-5, "gate")
    portable = twice(lambda z, w: F.rms_norm(z, w.shape, w, 1e-5), x, weight)
    assert_close(twice(lambda z, w: rms_norm(z, w, 1e-5), x, weight), portable, 1e-5, "norm")


def test_vmap_is_refused_in_one_line():
    with pytest.raises(SeriatimError, match="has no rule for vmap"):
        torch.vmap(lambda g: silu_gate(g, None))(torch.randn(3, 4, 5))


def test_one_node_to_a_compiler():
    norm = RMSNorm(130)

    def run(x, gate):
        return norm(gated(x, gate)).square().mean()

    x, gate = leaf(1, 200, 130), leaf(2, 200, 130)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_close(
        torch.autograd.grad(compiled(x, gate), [x, gate]),
        torch.autograd.grad(run(x, gate), [x, gate]),
        1e-7,
        "gradient",
    )


@pytest.mark.parametrize("mode", ["after", "before"])
def test_nothing_out_of_bounds_is_touched(mode):
    x, gate, weight = leaf(1, 3, 17), leaf(2, 3, 17), leaf(3, 17)
    with guarded(mode):
        torch.autograd.grad(rms_norm(silu_gate(gate, x), weight, 1e-5).sum(), [x, gate, weight])


def test_no_rows():
    assert silu_gate(torch.zeros(0, 5), None).shape == (0, 5)
    assert rms_norm(torch.zeros(3, 0, 5), torch.ones(5), 1e-5).shape == (3, 0, 5)
