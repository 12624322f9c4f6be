import pytest
import torch
from toys import CacheModel, FadingModel

from seriatim.core import state as states
from seriatim.core.errors import SeriatimError
from seriatim.decoding import generate as module
from seriatim.decoding.generate import generate
from seriatim.decoding.sampler import Sampler

GREEDY = Sampler(temperature=0)
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5], [7], [2, 7, 1, 8], [10, 0]]


@pytest.fixture(params=[FadingModel, CacheModel])
def model(request):
    torch.manual_seed(5)
    return request.param().double().eval()


def write(model, prompts, tokens=12, **options):
    """The ids of each row while it was active, and the final session."""
    rows, generation = [[] for _ in prompts], generate(model, prompts, tokens=tokens, **{"sampler": GREEDY, **options})
    for ids, active in generation:
        for row, (token, alive) in enumerate(zip(ids.tolist(), active.tolist(), strict=True)):
            if alive:
                rows[row].append(token)
    return rows, generation.session


def same_state(model, a, b):
    """Whether two states are followed by the same: caches that differ only in empty slots are."""
    probe = torch.tensor([[1, 2, 3]]).expand(states.batch_size(a), -1)
    return torch.allclose(model(probe, a)[0], model(probe, b)[0], atol=1e-12)


def read_again(model, ids):
    """The literal reference: reads everything from the start for every token."""
    return int(model(torch.tensor([ids]))[0][0, -1].argmax())


def test_greedy_equals_reading_everything_again(model):
    rows, _ = write(model, PROMPTS)
    for prompt, row in zip(PROMPTS, rows, strict=True):
        ids = list(prompt)
        for token in row:
            assert token == read_again(model, ids)
            ids.append(token)
    assert len({tuple(row) for row in rows}) > 1  # the prompts matter


def test_rows_are_independent_of_their_batch(model):
    together, session = write(model, PROMPTS, stop=4)
    assert len({len(row) for row in together}) > 1  # some stopped early
    for row, prompt in enumerate(PROMPTS):
        [alone], end = write(model, [prompt], stop=4)
        assert together[row] == alone
        assert session.pending[row] == end.pending[0]
        assert same_state(model, states.take(session.state, torch.tensor([row])), end.state)


@pytest.mark.parametrize("segment", [1, 3, 4, 100])
def test_the_prompt_is_read_in_segments_of_any_size(model, segment, monkeypatch):
    whole, session = write(model, PROMPTS)
    monkeypatch.setattr(module, "SEGMENT", segment)
    rows, other = write(model, PROMPTS)
    assert rows == whole
    assert torch.equal(other.pending, session.pending)
    assert same_state(model, other.state, session.state)


def test_reading_never_takes_more_than_one_segment(model, monkeypatch):
    sizes = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda x, *args, **kw: (sizes.append(x.size(1)), forward(x, *args, **kw))[1])
    generate(model, [torch.zeros(3000, dtype=torch.long)], tokens=0)
    assert max(sizes) == module.SEGMENT
    assert sum(sizes) == 2999


def test_a_row_that_stops_is_finished_and_its_state_stands_still(model):
    _, free = write(model, PROMPTS, tokens=12)
    rows, session = write(model, PROMPTS, tokens=12, stop=[4])
    stopped = [row for row, ids in enumerate(rows) if ids[-1] == 4]
    assert stopped
    assert session.active.tolist() == [row not in stopped for row in range(len(rows))]
    for row, ids in enumerate(rows):
        assert 4 not in ids[:-1]
        _, expected = model(torch.tensor([PROMPTS[row] + ids[:-1]]))  # the last token is pending
        assert same_state(model, states.take(session.state, torch.tensor([row])), expected)
    assert session.pending[stopped].tolist() == [4] * len(stopped)
    assert free.active.all()


def test_a_finished_row_repeats_its_stop_token(model):
    first = generate(model, [[3], [1, 2]], tokens=1, sampler=GREEDY).session.pending
    ids, active = list(generate(model, [[3], [1, 2]], tokens=4, sampler=GREEDY, stop=int(first[0])))[-1]
    assert ids[0] == first[0]
    assert active.tolist() == [False, True]


def test_all_rows_stopped_ends_the_iteration(model):
    rows, session = write(model, [[1, 2]], tokens=1000, stop=range(11))
    assert [len(row) for row in rows] == [1]
    assert not session.active.any()
    assert write(model, [[]], tokens=5, session=session)[0] == [[]]  # finished stays finished


def test_a_new_prompt_takes_a_finished_row_up_again(model):
    rows, session = write(model, [[1, 2]], tokens=5, sampler=GREEDY, stop=range(11))
    more, _ = write(model, [[3, 4]], tokens=5, sampler=GREEDY, session=session)
    assert more == write(model, [[1, 2, *rows[0], 3, 4]], tokens=5, sampler=GREEDY)[0]


@pytest.mark.parametrize("cut", [0, 1, 5, 11, 12])
def test_going_on_from_a_session_equals_never_stopping(model, cut):
    sampler = Sampler(temperature=1.5, repetition_penalty=1.2, top_k=9)
    never, last = write(model, PROMPTS, sampler=sampler, generator=torch.Generator().manual_seed(3), stop=4)
    first, session = write(model, PROMPTS, cut, sampler=sampler, generator=torch.Generator().manual_seed(3), stop=4)
    generator = torch.Generator().manual_seed(99)  # takes the session's state
    generation = generate(model, tokens=12 - cut, session=session, sampler=sampler, generator=generator, stop=4)
    for ids, active in generation:
        for row in active.nonzero()[:, 0].tolist():
            first[row].append(int(ids[row]))
    assert first == never
    assert torch.equal(generation.session.generator, last.generator)
    assert torch.equal(generation.session.seen, last.seen)


def test_a_document_begins_with_the_boundary_and_forgets_what_came_before(model):
    begun = write(model, [[10, 3, 4]], begin=10)
    assert write(model, [[3, 4]], begin=10)[0] == begun[0]
    assert write(model, [[7, 7, 7, 10, 3, 4]], begin=10)[0] == begun[0]
    assert write(model, [[], [10]], begin=10)[0] == write(model, [[10], [10]], begin=10)[0]
    assert write(model, [[7, 7, 10]], begin=10)[0] == write(model, [[10]], begin=10)[0]  # as it does while pending
    _, session = write(model, [[7, 7, 10]], tokens=0)
    more, _ = write(model, [[3, 4]], session=session, begin=10)
    assert more == begun[0]  # the pending boundary, read later, forgets as well


def test_the_repetition_penalty_sees_the_prompt_and_what_was_written(model):
    rows, session = write(model, [[3, 1]], tokens=9, sampler=Sampler(temperature=0, repetition_penalty=1e6))
    with torch.no_grad():
        model.out.bias += 100  # every logit positive, so that a seen token falls behind all others
    rows, session = write(model, [[3, 1]], tokens=9, sampler=Sampler(temperature=0, repetition_penalty=1e6))
    assert sorted(rows[0]) == [0, 2, 4, 5, 6, 7, 8, 9, 10]
    assert session.seen.all()
    _, session = write(model, [[3, 1]], tokens=0)
    _, session = write(model, [[5]], tokens=0, session=session)
    assert session.seen[0].nonzero()[:, 0].tolist() == [1, 3, 5]


def test_the_memory_of_a_session_does_not_depend_on_what_was_read():
    model = FadingModel()
    sizes = [states.nbytes(generate(model, [torch.ones(n).long()], tokens=0).session) for n in (1, 50, 500)]
    assert len(set(sizes)) == 1


def test_gradients_are_off_only_inside(model):
    generation = generate(model, [[1, 2]], tokens=2)
    next(generation)
    assert torch.is_grad_enabled()
    assert not generation.session.pending.requires_grad
    assert all(not leaf.requires_grad for _, leaf in states.leaves(generation.session))


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [3, 11]], {}, "prompt 1 holds the token 11; tokens run from 0 to 10"),
        ([[-1]], {}, "holds the token -1"),
        (None, {}, "prompts is None"),
        ([[1]], {"tokens": -1}, "tokens is -1"),
        ([[1]], {"tokens": 2.0}, "tokens is 2.0"),
    ],
)
def test_wrong_arguments_are_refused(prompts, options, message):
    with pytest.raises(SeriatimError, match=message):
        generate(FadingModel(), prompts, **{"tokens": 3, **options})


def test_a_session_takes_a_prompt_for_each_row_or_none():
    session = generate(FadingModel(), [[1], [2]], tokens=1).session
    with pytest.raises(SeriatimError, match="prompts has 1 prompts; the session has 2 rows"):
        generate(FadingModel(), [[1]], tokens=1, session=session)


def test_no_rows_write_nothing(model):
    assert list(generate(model, [], tokens=3)) == []
