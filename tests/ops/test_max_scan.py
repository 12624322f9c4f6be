import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agreement import assert_backends_agree, few, normal, resets
from seriatim import ops
from seriatim.core.errors import SeriatimError


@few
@given(
    batch=st.integers(0, 3), time=st.integers(0, 40), features=st.lists(st.integers(1, 4), max_size=2),
    carried=st.booleans(), resetting=st.booleans(),
)  # fmt: skip
def test_parallel_equals_reference(batch, time, features, carried, resetting):
    log_decay, scores = normal(0, batch, time, *features), normal(1, batch, time, *features)
    state = normal(2, batch, *features) if carried else None
    reset = resets(3, batch, time) if resetting else None
    inputs = [log_decay, scores, *([state] if carried else [])]
    assert_backends_agree(lambda: ops.max_scan(log_decay, scores, state=state, reset=reset), inputs)


def test_nothing_read_stays_nothing():
    m, state = ops.max_scan(torch.zeros(1, 5), torch.tensor([[-torch.inf, -torch.inf, 2.0, -torch.inf, 1.0]]))
    assert m.tolist() == [[-torch.inf, -torch.inf, 2.0, 2.0, 2.0]]
    assert state.tolist() == [2.0]


def test_extreme_decays_keep_the_later_exponents_exact():
    log_decay, scores = torch.full((1, 300), -1e30), torch.arange(300.0).flip(0)[None]
    assert torch.equal(ops.max_scan(log_decay, scores)[0], scores)
    log_decay[0, 150] = -torch.inf
    assert torch.equal(ops.max_scan(torch.zeros(1, 300), scores)[0], torch.full((1, 300), 299.0))
    assert torch.equal(ops.max_scan(log_decay, scores)[0], scores)


def test_pieces_equal_the_whole():
    log_decay, scores = normal(0, 2, 50, 3), normal(1, 2, 50, 3)
    whole, last = ops.max_scan(log_decay, scores)
    state, parts = None, []
    for part in (slice(0, 1), slice(1, 1), slice(1, 33), slice(33, 50)):
        m, state = ops.max_scan(log_decay[:, part], scores[:, part], state=state)
        parts.append(m)
    assert torch.allclose(torch.cat(parts, 1), whole)
    assert torch.allclose(state, last)


def test_wrong_arguments_are_named():
    with pytest.raises(SeriatimError, match="log_decay has shape"):
        ops.max_scan(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(SeriatimError, match="reset has dtype"):
        ops.max_scan(torch.zeros(2, 3), torch.zeros(2, 3), reset=torch.zeros(2, 3))
