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


def test_what_is_very_large_is_used_again_once_nobody_has_it():
    memory.release()
    first = memory.room(torch.zeros(1), 9 << 20)
    place, part = first.data_ptr(), first[5:]
    del first
    assert memory.room(torch.zeros(1), 9 << 20).data_ptr() != place  # a view still needs it
    del part
    memory.release()
    again = memory.room(torch.zeros(1), 3, 3 << 20)
    place = again.data_ptr()
    del again
    assert memory.room(torch.zeros(1), 9 << 20).data_ptr() == place
    other = memory.room(torch.zeros(1, dtype=torch.float64), 17, 1 << 18)
    assert other.data_ptr() == place
    assert other.dtype == torch.float64
    memory.release()


def test_a_block_more_than_twice_too_large_is_not_taken():
    memory.release()
    large = memory.room(torch.zeros(1), 20 << 20)
    place = large.data_ptr()
    del large
    assert memory.room(torch.zeros(1), 9 << 20).data_ptr() != place
    memory.release()


def test_no_more_is_kept_than_allowed(monkeypatch):
    memory.release()
    monkeypatch.setattr(memory, "_MOST", 40 << 20)
    blocks = [memory.room(torch.zeros(1), 9 << 20) for _ in range(3)]
    blocks.clear()
    assert sum(map(len, memory._free)) == 36 << 20
    memory.release()


def test_tensors_without_memory_get_none():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert memory.room(torch.zeros(1), 9 << 20).shape == (9 << 20,)
