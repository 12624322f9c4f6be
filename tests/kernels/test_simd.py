"""Products, transposes and elementary functions, against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agreement import few
from seriatim.kernels.cpu.guard import guarded
from seriatim.kernels.cpu.launch import Kernel

FUNCTIONS = {
    "exp": torch.exp,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "log_sigmoid": lambda x: -torch.logaddexp(-x, torch.zeros_like(x)),
}
TINY = torch.finfo(torch.float32).tiny


def compute(name, x):
    y = torch.full_like(x, 7.0)
    Kernel("probe", "elementary")(1, list(FUNCTIONS).index(name), x, y)
    return y


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_right_to_three_units_in_the_last_place(name):
    small = torch.logspace(-44, 2, 20_000)
    x = torch.cat([torch.linspace(-110, 95, 200_001), torch.linspace(-1, 1, 50_001), small, -small])
    wanted = FUNCTIONS[name](x.double())
    finite = wanted.float().isfinite()
    unit = torch.from_numpy(np.spacing(wanted.float().abs().numpy())).double()
    found = compute(name, x)
    assert torch.equal(found[~finite], wanted.float()[~finite])
    assert ((found.double() - wanted).abs() / unit)[finite].max() <= 3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_special_values(name):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, 3.4e38, -3.4e38, 1e-45, -1e-45, -1e-39])
    wanted = FUNCTIONS[name](x.double()).float()
    assert torch.allclose(compute(name, x), wanted, rtol=4e-7, atol=0, equal_nan=True)


def test_a_negative_zero_keeps_its_sign():
    assert torch.signbit(compute("tanh", torch.tensor([-0.0, 0.0]))).tolist() == [True, False]


@few
@given(st.integers(1, 40), st.integers(1, 150), st.integers(0, 70), st.booleans(), st.booleans())
def test_products_of_any_size(rows, columns, inner, transposed, keep):
    generator = torch.Generator().manual_seed(rows * columns + inner)
    a, b, c = (
        torch.randn(2, *shape, generator=generator) for shape in ((rows, inner), (inner, columns), (rows, columns))
    )
    wanted = a.double() @ b.double() + (c.double() if keep else 0)
    given_a = a.mT.contiguous() if transposed else a
    Kernel("probe", "product")(2, given_a, b, c, int(transposed), int(keep))
    assert (c - wanted).abs().max() <= 1e-5 * max(1, inner) ** 0.5


@few
@given(rows=st.integers(1, 40), columns=st.integers(1, 40))
def test_transposes(rows, columns):
    x = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    y = torch.zeros(columns, rows)
    Kernel("probe", "transposed")(1, x, y)
    assert torch.equal(y, x.mT)


@pytest.mark.parametrize("mode", ["after", "before"])
@pytest.mark.parametrize(("rows", "columns", "inner"), [(1, 1, 1), (5, 7, 3), (17, 97, 9), (6, 64, 16), (13, 33, 1)])
def test_nothing_out_of_bounds_is_touched(mode, rows, columns, inner):
    a, b, c = torch.randn(1, rows, inner), torch.randn(1, inner, columns), torch.zeros(1, rows, columns)
    x, y = torch.randn(rows, columns), torch.zeros(columns, rows)
    with guarded(mode):
        Kernel("probe", "product")(1, a, b, c, 0, 0)
        Kernel("probe", "transposed")(1, x, y)
    assert torch.allclose(c, a @ b, atol=1e-5)
    assert torch.equal(y, x.mT)
