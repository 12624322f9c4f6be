"""Room for large results."""

import pytest
import torch

from seriatim.kernels.cpu import memory


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (1 << 20,), (1 << 21, 3)])
def test_room_is_a_tensor_like_any_other(shape):
    like = torch.zeros(2, dtype=torch.float32)
    found = memory.room(like, *shape)
    assert found.shape == shape
    assert found.dtype == like.dtype
    assert found.is_contiguous()
    found.fill_(3)
    assert (found == 3).all()


def test_small_results_ask_for_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda *given: asked.append(given))
    memory.room(torch.zeros(1), 1000)
    assert asked == []
    large = memory.room(torch.zeros(1), 3 << 20)
    ((begin, size, _),) = asked
    assert large.data_ptr() <= begin
    assert begin + size <= large.data_ptr() + 4 * large.numel()


def test_without_large_pages_there_is_memory(monkeypatch):
    monkeypatch.setattr(memory, "_madvise", lambda: None)
    assert memory.room(torch.zeros(1), 3 << 20).fill_(1).sum() == 3 << 20
