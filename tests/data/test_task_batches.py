import pytest
import torch

from seriatim.core.build import build
from seriatim.core.errors import SeriatimError
from seriatim.data.task_batches import TaskBatches, generator


def batches(**options):
    return TaskBatches(build({"task": "parity"}), **{"batch": 3, "shortest": 4, "longest": 9, "seed": 1} | options)


def test_a_position_gives_the_same_batches_again():
    first = batches()
    read = [next(first) for _ in range(6)]
    second = batches()
    second.load_state_dict({**first.state_dict(), "batches_read": 4})
    for batch in read[4:]:
        again = next(second)
        assert torch.equal(batch.tokens, again.tokens)
        assert torch.equal(batch.targets, again.targets)
    assert first.state_dict() == second.state_dict()


def test_lengths_seeds_and_batches_differ():
    made = batches()
    read = [next(made).tokens for _ in range(40)]
    assert {tokens.size(1) for tokens in read} == set(range(4, 10))
    assert len({tuple(tokens[:, :4].flatten().tolist()) for tokens in read}) == 40
    assert next(batches(seed=2)).tokens.tolist() != read[0].tolist()
    numbers = [(0,), (1,), (0, 0), (0, 1), (1, 0)]
    assert len({int(torch.randint(2**60, (), generator=generator(*n))) for n in numbers}) == 5


def test_what_cannot_be_is_refused():
    with pytest.raises(SeriatimError, match="shortest is 10; it must be at most longest, which is 9"):
        batches(shortest=10)
    with pytest.raises(SeriatimError, match="the task is not what the run was started with"):
        batches().load_state_dict(batches(batch=4).state_dict())
