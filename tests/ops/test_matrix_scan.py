import pytest
import torch

import scans
from agreement import assert_backends_agree, assert_close, floating
from matrix_memories import KINDS, matrix_arguments
from seriatim.core.errors import SeriatimError
from seriatim.ops.matrix_scan import matrix_scan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time", [1, 70])
def test_heads_of_a_group_share_queries_and_keys(kind, time):
    q, k, *rest = matrix_arguments(kind, 0, 2, time, heads=6)
    inputs = [q[:, :, :2].detach().requires_grad_(), k[:, :, :2].detach().requires_grad_(), *rest]
    assert_backends_agree(lambda: matrix_scan(*inputs), inputs)
    apart = [z.repeat_interleave(3, 2) for z in inputs[:2]]
    assert_close(floating(matrix_scan(*inputs)), floating(matrix_scan(*apart, *rest)), 1e-12, "value")


@pytest.mark.parametrize("kind", KINDS)
def test_memory_grows_with_time_and_no_faster(kind):
    half, whole = (scans.saved_bytes(matrix_scan, matrix_arguments(kind, 0, 1, time)) for time in (512, 1024))
    assert whole < 2.1 * half


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 6)}, r"q has shape \(2, 5, 6\); it must be \(batch, time, groups, keys\)"),
        ({"q": [1.0]}, r"q is \[1.0\]; it must be a tensor"),
        ({"k": torch.zeros(2, 5, 2, 4)}, r"k has shape \(2, 5, 2, 4\); it must be .* = \(2, 5, 2, 3\)"),
        ({"v": torch.zeros(2, 6, 2, 2)}, r"v has shape \(2, 6, 2, 2\); it must be .* = \(2, 5, heads, values\)"),
        ({"v": torch.zeros(2, 5, 3, 2)}, "heads is 3 and groups is 2; heads must be a multiple of groups"),
        ({"v": torch.zeros(2, 5, 2, 2, dtype=torch.int64)}, "v has dtype torch.int64; it must be floating"),
        ({"v": torch.zeros(2, 5, 2, 2, dtype=torch.complex64)}, "v has dtype torch.complex64; it must be floating"),
        ({"v": torch.zeros(2, 5, 2, 2, device="meta")}, "v is on meta; it must be on cpu, where q is"),
        ({"log_decay": torch.zeros(2, 5, 3)}, r"log_decay has shape \(2, 5, 3\); it must be .* = \(2, 5, 2\)"),
        ({"log_decay": torch.zeros(2, 5, 2, 1)}, r"log_decay has shape .* = \(2, 5, 2, 3\)"),
        ({"log_decay": 0.5}, "log_decay is 0.5; it must be a tensor"),
        ({"state": torch.zeros(2, 2, 2, 3)}, r"state has shape \(2, 2, 2, 3\); it must be .* = \(2, 2, 3, 2\)"),
        ({"reset": torch.zeros(2, 5)}, "reset has dtype torch.float32; it must be torch.bool"),
        ({"reset": torch.zeros(2, 4, dtype=torch.bool)}, r"reset has shape \(2, 4\); it must be .* = \(2, 5\)"),
    ],
)
def test_a_wrong_argument_is_named(change, message):
    good = {"q": torch.zeros(2, 5, 2, 3), "k": torch.zeros(2, 5, 2, 3), "v": torch.zeros(2, 5, 2, 2)}
    with pytest.raises(SeriatimError, match=message):
        matrix_scan(**{**good, **change})
