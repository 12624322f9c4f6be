import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import LAYOUTS, assert_compiles, assert_near, assert_safe_in_threads, assert_within_bounds, laid_out

from agreement import few, gradients, normal
from scans import saved_bytes
from seriatim.kernels.cpu.rotary import rotate as compiled
from seriatim.nn.pointwise import SMALL
from seriatim.nn.rotary import rotate, turns
from seriatim.ops import backend


@pytest.fixture(autouse=True)
def _compiled():
    with backend("cpu"):
        yield


def turned(x, positions, base=10000.0):
    """Pairs of features as complex numbers, turned."""
    half = x.size(-1) // 2
    angle = positions[..., None, None] * base ** (-torch.arange(half, dtype=torch.float64) / half)
    z = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


@few
@given(
    batch=st.integers(0, 3),
    time=st.integers(0, 40),
    heads=st.integers(1, 3),
    half=st.sampled_from([1, 3, 16, 17, 40]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_agrees_with_complex_numbers(batch, time, heads, half, layout, seed):
    x = laid_out(normal(seed, batch, time, heads, 2 * half), layout)
    positions = torch.randint(0, 200, (batch, time), generator=torch.Generator().manual_seed(seed))
    high = x.detach().double().requires_grad_()
    found = compiled(x, *turns(positions, 2 * half, dtype=torch.float64).float())
    wanted = turned(high, positions)
    assert_near([found], [wanted], 1e-6, "value")
    assert_near(gradients(found, [x]), gradients(wanted, [high]), 1e-6, "gradient")


def test_of_any_precision_and_size():
    for time, dtype, tolerance in (
        (9, torch.float64, 1e-13),
        (9, torch.float32, 1e-6),
        (SMALL // 8, torch.float32, 1e-4),
    ):
        x, positions = normal(0, 1, time, 1, 8).to(dtype), torch.arange(time)[None]
        found = rotate(x, turns(positions, 8, dtype=dtype))
        assert found.dtype == dtype
        assert_near([found], [turned(x.double(), positions)], tolerance, "value")  # angles are rounded to their dtype
        assert_near([rotate(x.bfloat16(), turns(positions, 8))], [turned(x.double(), positions)], 1e-2, "value")


def test_large_ones_are_compiled_and_mean_the_same():
    x, angles = normal(0, 2, SMALL // 32, 2, 8).float(), turns(torch.arange(SMALL // 32).expand(2, -1), 8)
    found = rotate(x, angles)
    with backend("torch"):
        wanted = rotate(x, angles)
    assert "rotary" in found.grad_fn.name()
    assert_near([found], [wanted], 1e-6, "value")


@pytest.mark.parametrize("half", [1, 16, 21])
def test_stays_within_its_arrays(half):
    angles = turns(torch.arange(7).expand(2, -1), 2 * half)
    assert_within_bounds(lambda x: (compiled(x, *angles), ()), [laid_out(normal(0, 2, 7, 3, 2 * half), "plain")])


def test_compiles_as_one_graph_and_keeps_angles_only():
    x, angles = laid_out(normal(0, 2, 7, 3, 8), "plain"), turns(torch.arange(7).expand(2, -1), 8)
    assert_compiles(lambda z: (compiled(z, *angles), ()), [x])
    assert saved_bytes(lambda z: compiled(z, *angles), [x]) == 4 * angles.numel()


def test_threads():
    x, angles = laid_out(normal(0, 2, 700, 4, 32), "plain"), turns(torch.arange(700).expand(2, -1), 32)
    assert_safe_in_threads(lambda z: (compiled(z, *angles), ()), [x])


def test_second_derivatives():
    x, angles = laid_out(normal(0, 1, 3, 1, 4), "plain"), turns(torch.arange(3)[None], 4)
    (slope,) = torch.autograd.grad(compiled(x, *angles).pow(3).sum(), x, create_graph=True)
    (found,) = torch.autograd.grad(slope.sum(), x)
    high = x.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(turned(high, torch.arange(3)[None]).pow(3).sum(), high, create_graph=True)
    assert_near([found], torch.autograd.grad(slope.sum(), high), 4e-6, "second derivative")
