"""Every task by brute force, and the contract that all of them keep."""

from collections import Counter
from random import Random

import pytest
import torch
from oracles import ORACLES, asked

from seriatim.core.build import build, names, spec
from seriatim.core.errors import SeriatimError
from seriatim.tasks.base import IGNORED
from seriatim.tasks.icll import random_automaton

CASES = [
    ("mqar", {}),
    ("mqar", {"pairs": 3, "keys": 5, "power": 1.0, "noise": False}),
    ("copying", {}),
    ("selective_copying", {"count": 5, "symbols": 3}),
    ("induction_heads", {"symbols": 4}),
    ("parity", {}),
    ("modular_counting", {}),
    ("modular_counting", {"modulus": 5}),
    ("modular_arithmetic", {}),
    ("modular_arithmetic", {"times": False, "modulus": 7}),
    ("modular_arithmetic", {"brackets": True}),
    ("group_words", {}),
    ("group_words", {"group": "A5", "letters": "swaps"}),
    ("group_words", {"group": "S5", "letters": "two"}),
    ("set_disjointness", {}),
    ("set_disjointness", {"short": 2, "order": "long_first"}),
    ("passkey", {}),
    ("passkey", {"digits": 1, "filler": 3}),
    ("needle", {}),
    ("needle", {"needles": 7, "values": 1, "keys": 8}),
    ("phone_book", {"names": 40}),
    ("dyck", {}),
    ("dyck", {"kinds": 4, "depth": 2}),
    ("listops", {}),
    ("listops", {"depth": 2, "arguments": 3}),
    ("icll", {}),
]
LENGTHS = (1, 2, 3, 4, 5, 9, 11, 16, 40)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=CASES, ids=str)
def task(request):
    name, options = request.param
    return build({"task": name, **options})


def lengths(task):
    return [length for length in LENGTHS if length >= task.shortest]


def test_every_task_is_held_by_an_oracle():
    assert ORACLES.keys() | {"icll"} == {name for name, _ in CASES}
    no_tokens = {"arrow_pointing", "moving_digits", "smnist", "spoken_digits", "pathfinder"}  # tests of their own
    assert set(names("task")) == {name for name, _ in CASES} | no_tokens


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "icll"], ids=str)
def test_the_answers_are_those_of_the_oracle(name, options):
    task, random = build({"task": name, **options}), Random(0)
    for length in lengths(task) * 5:
        row = task.row(length, random)
        assert asked(row) == ORACLES[name](task, row.tokens)


def test_rows_and_batches_keep_the_contract(task):
    for length in lengths(task):
        batch = task.sample(5, length, generator())
        for part in (batch.tokens, batch.targets, batch.levels):
            assert part.shape == (5, length)
            assert part.dtype == torch.int64
        assert (batch.tokens >= 0).all()
        assert (batch.tokens < task.vocab_size).all()
        assert (batch.targets[batch.scored] < task.vocab_size).all()
        assert batch.scored.any(1).all() or type(task).__name__ == "ICLL"
        row = task.row(length, Random(3))
        assert len(row.tokens) == len(row.targets) == len(row.levels)
        assert length - 2 <= len(row.tokens) <= length or task.difficulty in ("depth", "entries")


def test_the_generator_alone_decides(task):
    first, again, other = (task.sample(4, 16, generator(seed)) for seed in (1, 1, 2))
    torch.manual_seed(5)
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.tokens, other.tokens)
    torch.manual_seed(5)
    assert torch.equal(task.sample(4, 16).tokens, task.sample(4, 16, generator(5)).tokens)


def test_a_task_is_plain_data(task):
    again = build(spec(task))
    assert torch.equal(task.sample(2, 12, generator()).tokens, again.sample(2, 12, generator()).tokens)


def test_what_is_right(task):
    batch = task.sample(6, 16, generator())
    assert torch.equal(task.right(batch.targets.clamp(min=0), batch), batch.scored)
    wrong = (batch.targets + 1) % task.vocab_size
    assert not task.right(wrong, batch).all()
    if batch.valid is None:
        assert not task.right(wrong, batch).any()


def test_what_cannot_be_made_is_refused(task):
    if task.shortest > 1:
        with pytest.raises(SeriatimError, match=f"length is {task.shortest - 1}; .* needs at least {task.shortest}"):
            task.sample(2, task.shortest - 1)
    with pytest.raises(SeriatimError, match="batch is 0; it must be a whole number above 0"):
        task.sample(0, 16)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"task": "mqar", "pairs": 9, "keys": 8}, "pairs is 9; it must be at most keys, which is 8"),
        ({"task": "mqar", "power": 0}, "power is 0; it must be a finite number above 0"),
        ({"task": "group_words", "group": "S6"}, "group is 'S6'; it must be one of S"),
        ({"task": "modular_counting", "modulus": 1}, "modulus is 1; it must be 2 or more"),
        ({"task": "modular_arithmetic", "modulus": 1}, "modulus is 1; it must be 2 or more"),
        ({"task": "listops", "arguments": 1}, "arguments is 1; it must be 2 or more"),
        ({"task": "set_disjointness", "order": "none"}, "order is 'none'; it must be one of"),
        ({"task": "icll", "states": 3}, "states is 3 and symbols is 18; both must be 4 or more"),
        ({"task": "needle", "needles": 40}, "needles is 40; it must be at most keys"),
        ({"task": "phone_book", "entries": 65}, "entries is 65; it must be at most names"),
        ({"task": "parties"}, "no task is named 'parties'; there are parity,"),
        ({"task": "parity", "bits": 3}, "parity has no option 'bits'"),
    ],
)
def test_wrong_options_are_refused(spec, message):
    with pytest.raises(SeriatimError) as refused:
        build(spec)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_too_many_elements_for_the_symbols_are_refused():
    with pytest.raises(SeriatimError, match="length is 40, too long for 30 symbols; symbols must be at least 36"):
        build({"task": "set_disjointness", "symbols": 30}).sample(1, 40)
    build({"task": "set_disjointness", "symbols": 36}).sample(1, 40)


def test_the_gaps_of_mqar_follow_the_power_law():
    """One pair: the first slot is the question with the chance that the law gives it."""
    task, random, slots = build({"task": "mqar", "pairs": 1, "power": 0.2}), Random(0), 5
    places = Counter((min(asked(task.row(2 + 2 * slots, random))) - 2) // 2 for _ in range(4000))
    weights = [(slot + 1) ** (0.2 - 1) for slot in range(slots)]
    for slot in range(slots):
        assert places[slot] / 4000 == pytest.approx(weights[slot] / sum(weights), abs=0.03)


def test_two_slots_of_mqar_are_drawn_one_after_the_other():
    """The second is drawn from what the first left, by the weights renormalised."""
    task, random = build({"task": "mqar", "pairs": 2, "power": 0.2}), Random(0)
    found = Counter(tuple(sorted(task._chosen(3, 2, random))) for _ in range(6000))
    p = [(slot + 1) ** (0.2 - 1) for slot in range(3)]
    p = [weight / sum(p) for weight in p]
    for i, j in [(0, 1), (0, 2), (1, 2)]:
        expected = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
        assert found[i, j] / 6000 == pytest.approx(expected, abs=0.03)


def test_every_symbol_of_a_random_language_leads_where_its_automaton_says():
    """Reads the strings again with an automaton of the same seed."""
    task = build({"task": "icll", "string": 6})
    for seed in range(20):
        row, automaton = task.row(40, Random(seed)), random_automaton(12, 18, 4, Random(seed))
        state, strings = 0, -1
        for place in range(39):
            token, answer = row.tokens[place], row.targets[place]
            if token == 18:
                state, strings = 0, strings + 1
            else:
                state = automaton[state][token]
            assert row.levels[place] == strings
            assert answer == (IGNORED if row.tokens[place + 1] == 18 else row.tokens[place + 1])
            if answer != IGNORED:
                assert set(row.valid[place]) == automaton[state].keys()


def test_random_automata_are_as_the_paper_says():
    random = Random(0)
    automata = [random_automaton(12, 18, 4, random) for _ in range(400)]
    assert {len(automaton) for automaton in automata} == set(range(4, 13))
    assert {len(edges) for automaton in automata for edges in automaton} == {1, 2, 3, 4}
    for automaton in automata:
        for state, edges in enumerate(automaton):
            assert state not in edges.values()
            assert len(set(edges.values())) == len(edges)
        assert len({symbol for edges in automaton for symbol in edges}) <= 18


def test_any_allowed_symbol_is_right():
    task = build({"task": "icll"})
    batch = task.sample(3, 30, generator())
    for v in range(task.vocab_size):
        right = task.right(torch.full((3, 30), v), batch)
        assert torch.equal(right, batch.scored & batch.valid[:, :, v])
    assert batch.valid.sum(2).max() > 1


@pytest.mark.parametrize("letters", ["all", "swaps", "two"])
@pytest.mark.parametrize(("group", "order"), [("S3", 6), ("A5", 60), ("S5", 120)])
def test_the_letters_generate_the_group(group, order, letters):
    task = build({"task": "group_words", "group": group, "letters": letters})
    reached, new = {0}, {0}
    while new:
        new = {task._products[letter][element] for letter in task.alphabet for element in new} - reached
        reached |= new
    assert len(reached) == task.vocab_size == order
    assert len(task.alphabet) == {"all": order, "swaps": {"S3": 3, "A5": 20, "S5": 10}[group], "two": 2}[letters]


def test_both_orders_of_the_sets_come():
    task, random = build({"task": "set_disjointness"}), Random(0)
    assert {task.row(32, random).levels[0] for _ in range(20)} == {4, 25}


def nested(tokens, opening, closing):
    """How deep brackets are nested, at most."""
    depth = [sum((t in opening) - (t in closing) for t in tokens[: place + 1]) for place in range(len(tokens))]
    return max(depth)


LEVELS = {
    "mqar": lambda task, row, place: len(asked(row)),
    "copying": lambda task, row, place: len(asked(row)),
    "selective_copying": lambda task, row, place: len(asked(row)),
    "induction_heads": lambda task, row, place: len(row.tokens[row.tokens.index(0) : -1]) - 1,
    "parity": lambda task, row, place: sum(row.tokens[: place + 1]),
    "modular_counting": lambda task, row, place: sum(row.tokens[: place + 1]),
    "group_words": lambda task, row, place: place + 1,
    "set_disjointness": lambda task, row, place: row.tokens.index(1) - 1,
    "passkey": lambda task, row, place: row.tokens.index(11) - row.tokens.index(10) - 1 - task.digits,
    "needle": lambda task, row, place: row.tokens.count(0),
    "phone_book": lambda task, row, place: len(row.tokens[: row.tokens.index(10)]) // (1 + task.digits),
    "dyck": lambda task, row, place: sum(1 if t <= task.kinds else -1 for t in row.tokens[: place + 1]),
    "listops": lambda task, row, place: nested(row.tokens, range(10, 14), [14]),
}


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] in LEVELS], ids=str)
def test_levels_are_what_the_task_says(name, options):
    task, random = build({"task": name, **options}), Random(1)
    for length in lengths(task) * 4:
        row = task.row(length, random)
        for place in asked(row):
            assert row.levels[place] == LEVELS[name](task, row, place)


@pytest.mark.parametrize("brackets", [True, False])
def test_levels_of_arithmetic(brackets):
    task, random = build({"task": "modular_arithmetic", "brackets": brackets}), Random(1)
    for length in range(2, 40):
        row = task.row(length, random)
        level = nested(row.tokens, [8], [9]) if brackets else sum(5 <= token <= 7 for token in row.tokens)
        assert row.levels[-1] == level
        assert len(row.tokens) == length if brackets else len(row.tokens) >= length - 1


def test_sizes_are_bounded():
    random = Random(0)
    assert max(build({"task": "dyck", "depth": 3}).row(200, random).levels) == 3
    listops = build({"task": "listops", "depth": 2, "arguments": 3})
    rows = [listops.row(60, random) for _ in range(600)]
    assert max(row.levels[0] for row in rows) == 2
    assert max(sum(token < 10 for token in row.tokens) for row in rows) == 9
    for name, option in [("mqar", "pairs"), ("copying", "count"), ("needle", "needles"), ("phone_book", "entries")]:
        task = build({"task": name, option: 3})
        assert {task.row(80, random).levels[-1] for _ in range(50)} == {1, 2}


@pytest.mark.parametrize("name", ["needle", "passkey", "phone_book"])
def test_an_answer_of_several_tokens_is_shown_as_it_is_given(name):
    task, random = build({"task": name}), Random(0)
    for _ in range(20):
        row = task.row(60, random)
        places = sorted(asked(row))
        assert len(places) > 1
        assert [row.tokens[place] for place in places[1:]] == [row.targets[place] for place in places[:-1]]


def test_a_quarter_of_the_arguments_of_listops_are_digits_where_there_is_room():
    """Of the first arguments of operations at the top, which all have room for more."""
    task, random = build({"task": "listops", "depth": 2}), Random(0)
    digits = sum(task.row(100, random).tokens[1] < 10 for _ in range(1000))
    assert digits / 1000 == pytest.approx(0.25, abs=0.05)
