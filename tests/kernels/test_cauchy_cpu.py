import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import assert_compiles, assert_like_reference, assert_safe_in_threads, assert_within_bounds, laid_out

from agreement import few, normal
from scans import saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.cauchy import _BLOCK
from seriatim.ops.cauchy import cauchy


def problem(seed, systems, products, poles, nodes, layout="plain"):
    """Leaves v (G, J, N, 2), w (G, N, 2) and the op on them, at nodes that lie on the imaginary axis."""
    w = normal(seed + 1, systems, poles, 2).detach()
    w = torch.stack([-w[..., 0].abs() - 0.01, 3 * w[..., 1]], -1)
    z = (2 * torch.tan(torch.linspace(0, 1.57, nodes)))[:nodes]

    def run(v, w):
        v, w = (torch.complex(part[..., 0], part[..., 1]) for part in (v, w))
        return torch.view_as_real(cauchy(v, torch.complex(torch.zeros_like(z), z).to(v.dtype), w)), ()

    return run, [laid_out(normal(seed, systems, products, poles, 2), layout), laid_out(w, layout)]


@few
@given(
    systems=st.integers(0, 3),
    products=st.sampled_from([0, 1, 4, 5]),
    poles=st.sampled_from([0, 1, 3, 32]),
    nodes=st.sampled_from([0, 1, 15, 16, 17, 300, _BLOCK, _BLOCK + 1]),
    layout=st.sampled_from(["plain", "transposed", "expanded"]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_reference(systems, products, poles, nodes, layout, seed):
    assert_like_reference("cauchy", *problem(seed, systems, products, poles, nodes, layout))


def test_keeps_its_digits_beside_a_pole():
    """Poles 1e-4 from nodes whose imaginary part is 130."""
    v, w = laid_out(normal(0, 1, 2, 1, 2), "plain"), torch.tensor([[[-1e-4, 130.0]]]).requires_grad_()

    def run(v, w):
        z = torch.tensor([129.9999, 130.0, 130.0001])
        z = torch.complex(torch.zeros(3), z).to(torch.complex(v, v).dtype)
        return torch.view_as_real(cauchy(torch.view_as_complex(v), z, torch.view_as_complex(w))), ()

    assert_like_reference("cauchy", run, [v, w])


def test_nodes_that_are_not_there_meet_no_pole():
    """A pole at 0, and nodes that do not fill a vector."""
    v, w = laid_out(normal(0, 1, 1, 1, 2), "plain"), torch.zeros(1, 1, 2).requires_grad_()
    k = cauchy(torch.view_as_complex(v), torch.tensor([1j, 2j]), torch.view_as_complex(w))
    slopes = torch.autograd.grad(torch.view_as_real(k).sum(), [v, w])
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize(("products", "poles", "nodes"), [(1, 1, 1), (4, 3, 33), (3, 5, _BLOCK + 7)])
def test_stays_within_its_arrays(products, poles, nodes):
    assert_within_bounds(*problem(0, 2, products, poles, nodes))


def test_compiles_as_one_graph():
    assert_compiles(*problem(0, 2, 4, 3, 20))


def test_threads():
    assert_safe_in_threads(*problem(0, 5, 4, 8, 700))


def test_keeps_nothing_that_grows_with_nodes_and_poles():
    few_poles, many_poles = (problem(0, 2, 4, poles, 4000) for poles in (1, 100))
    few_bytes, many_bytes = (saved_bytes(lambda *x, run=run: run(*x)[0], x) for run, x in (few_poles, many_poles))
    assert many_bytes - few_bytes < 40 * 4 * 2 * 4 * 100


def test_second_derivatives_and_vmap_are_refused():
    run, inputs = problem(0, 1, 2, 3, 5)
    with pytest.raises(SeriatimError, match="no second derivatives; take them inside"):
        torch.autograd.grad(run(*inputs)[0].square().sum(), inputs, create_graph=True)
    with pytest.raises(SeriatimError, match="no rule for vmap"):
        torch.vmap(lambda v: run(v, inputs[1])[0])(inputs[0].unsqueeze(0))
