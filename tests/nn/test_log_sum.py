import pytest
import torch

from seriatim import ops
from seriatim.nn.log_sum import document_log_sum, running_log_sum


def data():
    x = torch.randn(2, 23, 3, dtype=torch.float64) * 10
    x[0, :2] = x[1, 7] = float("-inf")
    x[1, 8] = 5000.0
    x[1, 12:] -= 5000.0
    reset = torch.zeros(2, 23, dtype=torch.bool)
    reset[0, [0, 1, 9]] = reset[1, [12, 22]] = True
    return x, reset


def documents(reset):
    for row, begins in enumerate(reset):
        starts = begins.nonzero().flatten().tolist()
        yield from ((row, a, b) for a, b in zip([0, *starts], [*starts, len(begins)], strict=True) if a < b)


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_running_sums_are_those_of_each_document(backend):
    x, reset = data()
    nothing = torch.full((2, 3), float("-inf"), dtype=torch.float64)
    with ops.backend(backend):
        z = running_log_sum(x, nothing, reset)
    for row, a, b in documents(reset):
        assert torch.allclose(z[row, a:b], x[row, a:b].logcumsumexp(0)), (row, a)
    assert torch.allclose(running_log_sum(x, nothing, None), x.logcumsumexp(1))


def test_a_carried_sum_goes_on():
    x, _ = data()
    before = torch.tensor([[3.0, -4000.0, 6000.0]] * 2, dtype=torch.float64)
    expected = torch.cat([before[:, None], x], 1).logcumsumexp(1)[:, 1:]
    assert torch.allclose(running_log_sum(x, before, None), expected)
    assert torch.allclose(running_log_sum(x, before, torch.zeros(2, 23, dtype=torch.bool)), expected)


def test_sums_of_documents():
    x, reset = data()
    z = document_log_sum(x, reset)
    for row, a, b in documents(reset):
        assert torch.allclose(z[row, a:b], x[row, a:b].logsumexp(0).expand(b - a, 3)), (row, a)
    assert torch.allclose(document_log_sum(x, None), x.logsumexp(1, keepdim=True).expand_as(x))


def test_gradients_are_softmaxes():
    x = torch.randn(2, 9, 1, dtype=torch.float64, requires_grad=True)
    before = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)
    reset = torch.zeros(2, 9, dtype=torch.bool)
    reset[0, 4] = True
    assert torch.autograd.gradcheck(lambda x, before: running_log_sum(x, before, reset), (x, before))
    assert torch.autograd.gradcheck(lambda x: document_log_sum(x, reset), (x,))
