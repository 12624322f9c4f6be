import inspect
from importlib import import_module

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from seriatim.core.errors import SeriatimError
from seriatim.ops.checks import check_tensors
from seriatim.ops.precision import compute_dtype
from shape_checks import shape_checked


def test_sizes_are_found_by_name():
    x, y = torch.zeros(2, 5, 3, 4), torch.zeros(2, 3, 4)
    found = check_tensors({"x": (x, "batch time *features"), "y": (y, "batch *features"), "z": (None, "batch?")})
    assert (found["batch"], found["time"]) == (2, 5)


@pytest.mark.parametrize(
    ("y", "pattern", "message"),
    [
        (torch.zeros(2, 4), "batch time", r"y has shape \(2, 4\); it must be \(batch, time\) = \(2, 5\)"),
        (torch.zeros(2), "batch time", r"y has shape \(2,\); it must be \(batch, time\) = \(2, 5\)"),
        (torch.zeros(2, 5, 1), "batch time", r"y has shape \(2, 5, 1\)"),
        (torch.zeros(2, 3), "batch 4", r"y has shape \(2, 3\); it must be \(batch, 4\) = \(2, 4\)"),
        (torch.zeros(2, 3), "batch *features", r"y has shape \(2, 3\); it must be \(batch, \*features\) = \(2, 3, 4\)"),
        (torch.zeros(2, 3, 5), "batch *features", r"y has shape \(2, 3, 5\)"),
        (torch.zeros(()), "batch *features", r"y has shape \(\)"),
        (torch.zeros(2, dtype=torch.int64), "batch", "y has dtype torch.int64; it must be floating$"),
        (torch.zeros(2, dtype=torch.complex64), "batch", "y has dtype torch.complex64; it must be floating$"),
        (torch.zeros(2, device="meta"), "batch", "y is on meta; it must be on cpu, where x is"),
        (None, "batch", r"y is None; it must be a tensor of shape \(batch\)"),
    ],
)
def test_what_does_not_fit_is_named(y, pattern, message):
    with pytest.raises(SeriatimError, match=message):
        check_tensors({"x": (torch.zeros(2, 5, 3, 4), "batch time *features"), "y": (y, pattern)})


def test_half_precision_is_computed_in_single():
    half, brain = torch.zeros(1, dtype=torch.float16), torch.zeros(1, dtype=torch.bfloat16)
    assert compute_dtype(half, None) == compute_dtype(brain) == compute_dtype(half, brain) == torch.float32
    assert compute_dtype(brain, torch.zeros(1, dtype=torch.float64)) == torch.float64
    assert compute_dtype(half, torch.zeros(1, dtype=torch.complex64)) == torch.complex64


@pytest.mark.parametrize("name", ["diagonal_scan", "matrix_scan", "selective_scan", "short_conv"])
def test_a_reference_takes_what_its_op_takes(name):
    module = import_module(f"seriatim.ops.{name}")
    assert str(inspect.signature(module.reference)) == str(inspect.signature(getattr(module, name)))


def halve(x: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    return x / 2


def test_the_tests_check_the_shapes_that_are_declared():
    right = shape_checked(halve, halve)
    assert right(torch.ones(2, 3)).shape == (2, 3)
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        right(torch.ones(2, 3, 4))
    with pytest.raises(TypeCheckError, match="return value"):
        shape_checked(lambda x: x[:1], halve)(torch.ones(2, 3))
