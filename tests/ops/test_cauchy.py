import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import scans
from agreement import assert_backends_agree, assert_close, few, gradients, normal
from seriatim.core.errors import SeriatimError
from seriatim.ops.cauchy import cauchy


def problem(seed, systems=2, products=3, poles=4, nodes=9):
    """Real leaves v (G, J, N, 2) and w (G, N, 2), poles of negative real part, and nodes of positive ones."""
    v, w = normal(seed, systems, products, poles, 2), normal(seed + 1, systems, poles, 2).detach()
    w = torch.stack([-w[..., 0].abs() - 0.1, 3 * w[..., 1]], -1).requires_grad_()
    z = torch.view_as_complex(normal(seed + 2, nodes, 2).detach())
    return v, torch.complex(z.real.abs(), 3 * z.imag), w


def product(z):
    return lambda v, w: torch.view_as_real(cauchy(torch.view_as_complex(v), z, torch.view_as_complex(w)))


@few
@given(
    systems=st.sampled_from([0, 1, 3]),
    products=st.sampled_from([0, 1, 4]),
    poles=st.sampled_from([0, 1, 7]),
    nodes=st.sampled_from([0, 1, 2, 40]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_equation(systems, products, poles, nodes, seed):
    v, z, w = problem(seed, systems, products, poles, nodes)
    assert_backends_agree(lambda: product(z)(v, w), [v, w], 1e-12)


def test_blocks_do_not_matter(monkeypatch):
    v, z, w = problem(0)
    whole = product(z)(v, w)
    monkeypatch.setattr(sys.modules["seriatim.ops.cauchy"], "BLOCK", 3 * w[..., 0].numel())
    blocks = product(z)(v, w)
    assert_close([blocks], [whole], 1e-14, "value")
    assert_close(gradients(blocks, [v, w]), gradients(whole, [v, w]), 1e-13, "gradient")


def test_is_a_real_rational_function():
    """At conjugate nodes it has conjugate values; at a real one a real value."""
    v, z, w = problem(0)
    k, mirrored = product(z)(v, w), product(z.conj())(v, w)
    assert_close([mirrored], [k * torch.tensor([1, -1])], 1e-14, "value")
    assert product(torch.tensor([1.0 + 0j, 2.0], dtype=z.dtype))(v, w)[..., 1].abs().max() < 1e-15


def test_gradients_twice(monkeypatch):
    monkeypatch.setattr(sys.modules["seriatim.ops.cauchy"], "BLOCK", 4)
    v, z, w = problem(0, 1, 2, 2, 3)
    assert torch.autograd.gradgradcheck(product(z), (v, w))


@pytest.mark.parametrize("block", [8, 1000])
def test_vmap(monkeypatch, block):
    monkeypatch.setattr(sys.modules["seriatim.ops.cauchy"], "BLOCK", block)
    v, z, w = problem(0)
    more = torch.stack([v, 2 * v]).detach()
    found = torch.vmap(lambda x: product(z)(x, w.detach()))(more)
    assert_close([found[0], found[1]], [product(z)(v, w), 2 * product(z)(v, w)], 1e-14, "value")


@pytest.mark.parametrize("block", [24, 1000])
def test_compiles_as_one_graph(monkeypatch, block):
    monkeypatch.setattr(sys.modules["seriatim.ops.cauchy"], "BLOCK", block)
    v, z, w = problem(0)
    scans.assert_compiles(product(z), [v, w])


def test_memory_is_linear_in_the_nodes(monkeypatch):
    """What is kept is the poles' and the nodes', not their product."""
    monkeypatch.setattr(sys.modules["seriatim.ops.cauchy"], "BLOCK", 1000)
    for nodes in (1000, 4000):
        v, z, w = problem(0, 2, 1, 50, nodes)
        assert scans.saved_bytes(product(z), [v, w]) <= 100 * nodes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": torch.zeros(2, 3, 4)}, "v has dtype torch.float32; it must be complex"),
        ({"w": torch.zeros(2, 5) + 0j}, r"w has shape \(2, 5\); it must be \(systems, poles\) = \(2, 4\)"),
        ({"z": torch.zeros(2, 3) + 0j}, r"z has shape \(2, 3\); it must be \(nodes\)"),
        ({"z": torch.zeros(3, dtype=torch.cfloat).requires_grad_()}, "z asks for a gradient"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    good = {"v": torch.zeros(2, 3, 4) + 0j, "z": torch.ones(6) + 0j, "w": torch.zeros(2, 4) + 0j}
    with pytest.raises(SeriatimError, match=message):
        cauchy(**{**good, **change})
