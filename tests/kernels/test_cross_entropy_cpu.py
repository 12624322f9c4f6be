import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import LAYOUTS, assert_compiles, assert_near, assert_safe_in_threads, assert_within_bounds, laid_out

from agreement import few, gradients, normal
from scans import saved_bytes
from seriatim.core.errors import SeriatimError
from seriatim.kernels.cpu.cross_entropy import cross_entropy as compiled
from seriatim.nn.cross_entropy import LARGE, cross_entropy
from seriatim.ops import backend


@pytest.fixture(autouse=True)
def _compiled():
    with backend("cpu"):
        yield


def some(seed, rows, classes, absent=0.2, size=1.0, layout="plain"):
    """Logits, and targets of which that share is -100."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(classes, (rows,), generator=generator)
    logits = laid_out(size * normal(seed, rows, classes), layout)
    return logits, targets.masked_fill(torch.rand(rows, generator=generator) < absent, -100)


def assert_like_library(logits, targets, tolerance=2e-6):
    """Values and gradients are those of PyTorch's own in float64."""
    high = logits.detach().double().requires_grad_()
    found = compiled(logits, targets)
    wanted = F.cross_entropy(high, targets, ignore_index=-100, reduction="sum")
    assert_near([found], [wanted], tolerance, "value", least=1.0)
    assert_near(gradients(found, [logits]), gradients(wanted, [high]), tolerance, "gradient")


@few
@given(
    rows=st.integers(0, 40),
    classes=st.sampled_from([1, 2, 63, 64, 65, 200]),
    absent=st.sampled_from([0.0, 0.3, 1.0]),
    size=st.sampled_from([1e-3, 1.0, 100.0]),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_library(rows, classes, absent, size, layout, seed):
    assert_like_library(*some(seed, rows, classes, absent, size, layout))


def test_many_classes():
    assert_like_library(*some(0, 20, 20_001))


def test_classes_that_cannot_be():
    logits, targets = some(0, 9, 70)
    logits = logits.detach()
    logits[torch.arange(9), (targets.clamp(min=0) + 1) % 70] = -torch.inf
    assert_like_library(logits.requires_grad_(), targets)


def test_what_is_not_a_number_shows():
    logits, targets = some(0, 9, 70, absent=0.0)
    logits = logits.detach()
    logits[4, 60] = torch.nan
    assert compiled(logits, targets).isnan()


@pytest.mark.parametrize("wrong", [-1, -99, 70, 1 << 40])
def test_a_target_that_is_no_class_is_named(wrong):
    logits, targets = some(0, 9, 70)
    targets[5] = wrong
    with pytest.raises(SeriatimError, match=f"targets holds {wrong}; it must stay within 0 and 69, or be -100"):
        compiled(logits, targets)


@pytest.mark.parametrize("classes", [5, 64, 130])
def test_stays_within_its_arrays(classes):
    logits, targets = some(0, 9, classes)
    assert_within_bounds(lambda z: (compiled(z, targets), ()), [logits])


def test_compiles_as_one_graph():
    logits, targets = some(0, 9, 70)
    assert_compiles(lambda z: (compiled(z, targets), ()), [logits])


def test_threads():
    logits, targets = some(0, 900, 200)
    assert_safe_in_threads(lambda z: (compiled(z, targets), ()), [logits])


def test_keeps_two_numbers_a_row():
    logits, targets = some(0, 900, 200)
    assert saved_bytes(lambda z, t: compiled(z, t), [logits, targets]) == 4 * 2 * 900


def test_second_derivatives():
    logits, targets = some(0, 5, 70)
    high = logits.detach().double().requires_grad_()
    slopes = []
    for z, loss in ((logits, compiled(logits, targets)), (high, F.cross_entropy(high, targets, reduction="sum"))):
        (slope,) = torch.autograd.grad(loss.square(), z, create_graph=True)
        slopes.append(torch.autograd.grad(slope.square().sum(), z)[0])
    assert_near(slopes[:1], slopes[1:], 4e-6, "second derivative")


def test_large_ones_are_compiled_and_mean_the_same():
    logits, targets = some(0, 64, LARGE // 64)
    for z, name in ((logits, "seriatim"), (logits[:60], "NllLoss"), (logits.double(), "NllLoss")):
        assert name in cross_entropy(z, targets[: len(z)]).grad_fn.name()
    with backend("torch"):
        wanted = cross_entropy(logits, targets)
    assert_near([cross_entropy(logits, targets)], [wanted], 2e-6, "value")
    assert cross_entropy(logits.bfloat16(), targets).dtype == torch.float32
