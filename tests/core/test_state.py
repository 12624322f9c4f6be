from typing import NamedTuple

import pytest
import torch

import seriatim as sq
from seriatim.core import state as states
from seriatim.core.errors import SeriatimError
from small_disk import files_of_at_most


class Inner(NamedTuple):
    h: torch.Tensor
    count: torch.Tensor


class Outer(NamedTuple):
    inner: Inner
    tail: torch.Tensor


def example(batch=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    inner = Inner(torch.randn(batch, 4, generator=g), torch.arange(batch) + seed)
    return (Outer(inner, torch.randn(batch, 2, 5, generator=g)), ())


def cache(batch, slots):
    return Inner(torch.ones(batch, slots, 2), torch.arange(slots).repeat(batch, 1))


def same(a, b):
    assert [name for name, _ in states.leaves(a)] == [name for name, _ in states.leaves(b)]
    for (name, x), (_, y) in zip(states.leaves(a), states.leaves(b), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, msg=name)


def test_leaves_are_named_by_path():
    assert [name for name, _ in states.leaves(example())] == ["0.inner.h", "0.inner.count", "0.tail"]


def test_map_keeps_the_structure():
    mapped = states.map_state(lambda leaf: leaf * 2, example())
    assert isinstance(mapped[0], Outer)
    assert isinstance(mapped[0].inner, Inner)
    torch.testing.assert_close(mapped[0].tail, example()[0].tail * 2)


def test_take_reorders_forks_and_drops():
    taken = states.take(example(), torch.tensor([2, 0, 0]))
    torch.testing.assert_close(taken[0].tail, example()[0].tail[[2, 0, 0]])
    assert states.batch_size(states.take(example(), torch.tensor([], dtype=torch.long))) == 0


def test_where_chooses_rows():
    new, old = example(seed=1), example()
    chosen = states.where(torch.tensor([True, False, True]), new, old)
    torch.testing.assert_close(
        chosen[0].inner.h, torch.stack([new[0].inner.h[0], old[0].inner.h[1], new[0].inner.h[2]])
    )


def test_join_is_the_inverse_of_take():
    whole = example()
    same(states.join([states.take(whole, torch.tensor(rows)) for rows in ([0], [1, 2])]), whole)
    with pytest.raises(SeriatimError, match="states is empty"):
        states.join([])


def test_caches_of_different_growth_are_joined_with_empty_slots():
    joined = states.join([cache(1, 2), cache(1, 4)])
    assert joined.h.shape == (2, 4, 2)
    assert joined.count.tolist() == [[0, 1, -1, -1], [0, 1, 2, 3]]
    chosen = states.where(torch.tensor([True]), cache(1, 3), cache(1, 1))
    assert chosen.count.tolist() == [[0, 1, 2]]


def test_detach_cuts_the_graph():
    x = torch.ones(2, requires_grad=True)
    assert not states.detach((x * 2,))[0].requires_grad


def test_to_casts_floating_leaves_only():
    moved = states.to(example(), dtype=torch.float64)
    assert moved[0].inner.h.dtype == torch.float64
    assert moved[0].inner.count.dtype == torch.int64


def test_nbytes_counts_every_leaf():
    assert states.nbytes(example()) == 3 * (4 * 4 + 8 + 10 * 4)
    assert states.nbytes(()) == 0


def test_save_and_load(tmp_path):
    path = tmp_path / "s.safetensors"
    whole = (*example(), torch.randn(3, 2, dtype=torch.complex64))
    states.save(whole, path, {"model": "a"})
    blank = states.map_state(lambda leaf: torch.zeros_like(leaf[:1]), whole)
    same(states.load(path, blank, {"model": "a"}), whole)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


def test_load_takes_a_grown_cache(tmp_path):
    states.save(cache(2, 5), tmp_path / "s")
    same(states.load(tmp_path / "s", cache(1, 0)), cache(2, 5))


def test_load_refuses_what_is_not_this_models_state(tmp_path):
    path = tmp_path / "s"
    with pytest.raises(SeriatimError, match="does not exist"):
        states.load(path, example())
    path.write_bytes(b"not a state")
    with pytest.raises(SeriatimError, match="cannot be read"):
        states.load(path, example())
    states.save(example(), path, {"model": "a"})
    with pytest.raises(SeriatimError, match="its model is a, not b"):
        states.load(path, example(), {"model": "b"})
    with pytest.raises(SeriatimError, match="the states differ in"):
        states.load(path, example()[0])
    other = (Outer(example()[0].inner, torch.zeros(3, 2, 6)), ())
    with pytest.raises(SeriatimError, match="tail has shape"):
        states.load(path, other)


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "state"
    states.save(example(), path)
    before = path.read_bytes()
    with files_of_at_most(100), pytest.raises(OSError, match="File too large"):
        states.save(example(seed=1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_loaded_leaf_lies_where_complex_numbers_may(tmp_path):
    """Files hold numbers at any address; complex arithmetic on one that is not aligned ends the process."""
    state = torch.randn(3, 5, 2, dtype=torch.float64)
    states.save(state, tmp_path / "state")
    loaded = states.load(tmp_path / "state", like=state)
    assert loaded.data_ptr() % 16 == 0
    torch.view_as_complex(loaded).addcmul_(torch.view_as_complex(state), torch.view_as_complex(state))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda hidden, cell: (hidden, None), "state holds a NoneType; it must be tensors, alone or in tuples"),
        (lambda hidden, cell: (hidden, [cell]), "state holds a list; it must be tensors"),
        (lambda hidden, cell: (hidden, cell.long()), "cell has dtype torch.int64, not torch.float32"),
        (lambda hidden, cell: (hidden, cell[:1]), "state cell has 1 rows; x has 2"),
    ],
)
def test_what_is_no_state_is_refused_in_a_line(state, message):
    mixer = sq.build("lstm", dim=4)
    start = mixer.init_state(2)
    wrong = type(start)(**dict(zip(("hidden", "cell"), state(start.hidden, start.cell), strict=True)))
    with pytest.raises(SeriatimError, match=message):
        mixer(torch.randn(2, 3, 4), wrong)
