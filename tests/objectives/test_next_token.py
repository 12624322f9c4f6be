from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from seriatim.core import taps
from seriatim.objectives.next_token import next_token


class Batch(NamedTuple):
    tokens: Tensor
    targets: Tensor
    reset: Tensor | None


class Counting(nn.Module):
    """Its logits are a table's rows; its state counts tokens."""

    def __init__(self, auxiliary=None):
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 7, generator=torch.Generator().manual_seed(0)))
        self.auxiliary, self.seen_reset = auxiliary, None

    def forward(self, x, state=None, *, reset=None, lengths=None):
        self.seen_reset = reset
        if self.auxiliary is not None:
            taps.add_loss(self, "balance", self.auxiliary * self.table.sum())
            taps.tap(self, "table", self.table)
        state = torch.zeros(len(x)) if state is None else state
        return self.table[x], state + x.size(1)


def batch(targets, reset=None):
    targets = torch.tensor(targets)
    return Batch(torch.arange(targets.numel()).view_as(targets) % 5, targets, reset)


def test_it_is_the_mean_of_the_targets_that_count():
    model = Counting()
    data = batch([[1, -100, 3], [-100, -100, 6]])
    loss, _ = next_token(model, data)
    log_p = model.table.detach().double().log_softmax(-1)
    assert loss.item() == pytest.approx(-(log_p[0, 1] + log_p[2, 3] + log_p[0, 6]).item() / 3, rel=1e-6)


def test_the_state_goes_in_and_out():
    model = Counting()
    _, state = next_token(model, batch([[1, 2]]))
    _, state = next_token(model, batch([[1, 2, 3]]), state)
    assert state.tolist() == [5]


def test_the_reset_reaches_the_model():
    model, reset = Counting(), torch.tensor([[True, False]])
    next_token(model, batch([[1, 2]], reset))
    assert model.seen_reset is reset


def test_auxiliary_losses_are_added():
    plain, _ = next_token(Counting(), batch([[1, 2]]))
    model = Counting(auxiliary=0.5)
    loss, _ = next_token(model, batch([[1, 2]]))
    assert (loss - plain).item() == pytest.approx(0.5 * model.table.sum().item(), rel=1e-5)
    loss.backward()
    assert model.table.grad.sum().item() == pytest.approx(0.5 * model.table.numel(), rel=1e-4)


def test_no_target_is_no_loss():
    model = Counting()
    loss, _ = next_token(model, batch([[-100, -100]]))
    loss.backward()
    assert loss.item() == 0
    assert model.table.grad.abs().max() == 0


def test_half_precision_logits_are_summed_in_float32():
    model = Counting().to(torch.bfloat16)
    data = batch([[1, 2, 3, 4] * 64])
    loss, _ = next_token(model, data)
    logits = model.table.detach().double()[data.tokens].flatten(0, 1)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(logits, data.targets.flatten()).item(), rel=1e-5)
