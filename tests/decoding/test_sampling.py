import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim.core.errors import SeriatimError
from seriatim.decoding import sampling
from seriatim.decoding.sampler import Sampler

logit = st.floats(-30, 30, width=32)
rows = st.integers(1, 12).flatmap(lambda n: st.lists(st.lists(logit, min_size=n, max_size=n), min_size=1, max_size=3))
fraction = st.floats(0.01, 1.0)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def tensor(table):
    return torch.tensor(table, dtype=torch.float64)


def softmax(row):
    weights = [math.exp(x - max(row)) for x in row]
    return [weight / sum(weights) for weight in weights]


def kept(logits):
    return [{i for i, x in enumerate(row) if x > -math.inf} for row in logits.tolist()]


def unchanged_where_kept(filtered, logits):
    return bool(((filtered == logits) | filtered.isneginf()).all())


@quick
@given(rows, st.integers(1, 15))
def test_top_k_keeps_what_is_not_beaten_by_k_others(table, k):
    filtered = sampling.top_k(tensor(table), k)
    assert unchanged_where_kept(filtered, tensor(table))
    assert kept(filtered) == [{i for i, x in enumerate(row) if sum(y > x for y in row) < k} for row in table]


@quick
@given(rows, fraction)
def test_top_p_keeps_the_smallest_set_of_at_least_p(table, p):
    filtered = sampling.top_p(tensor(table), p)
    assert unchanged_where_kept(filtered, tensor(table))
    for row, found in zip(table, kept(filtered), strict=True):
        probabilities = softmax(row)
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        assert found == set(order[: len(found)])  # the most probable
        total = sum(probabilities[i] for i in order[: len(found)])
        assert total >= p - 1e-9  # enough
        assert p == 1 or total - probabilities[order[len(found) - 1]] < p + 1e-9  # one fewer is not


@quick
@given(rows, fraction)
def test_min_p_is_relative_to_the_most_probable(table, p):
    filtered = sampling.min_p(tensor(table), p)
    assert unchanged_where_kept(filtered, tensor(table))
    for row, found in zip(table, kept(filtered), strict=True):
        probabilities = softmax(row)
        least = p * max(probabilities)
        assert {i for i, q in enumerate(probabilities) if q > least * (1 + 1e-9)} <= found
        assert found <= {i for i, q in enumerate(probabilities) if q >= least * (1 - 1e-9)}


@quick
@given(rows, st.floats(0.5, 3.0), st.data())
def test_repetition_penalty_divides_the_positive_and_multiplies_the_negative(table, penalty, data):
    seen = [[data.draw(st.booleans()) for _ in row] for row in table]
    expected = [
        [(x / penalty if x > 0 else x * penalty) if mark else x for x, mark in zip(row, marks, strict=True)]
        for row, marks in zip(table, seen, strict=True)
    ]
    assert torch.equal(sampling.repetition_penalty(tensor(table), torch.tensor(seen), penalty), tensor(expected))


@quick
@given(rows, st.floats(0.1, 5.0))
def test_temperature_divides_and_greedy_is_its_limit(table, value):
    logits = tensor(table)
    assert torch.equal(sampling.temperature(logits, value), tensor([[x / value for x in row] for row in table]))
    assert sampling.greedy(logits).tolist() == [row.index(max(row)) for row in table]


def test_a_draw_follows_the_probabilities():
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    drawn = sampling.draw(probabilities.log().expand(20_000, -1), torch.Generator().manual_seed(1))
    frequency = drawn.bincount(minlength=4) / 20_000
    assert torch.allclose(frequency, probabilities, atol=0.015)
    assert frequency[3] == 0


def test_the_sampler_applies_penalty_temperature_top_k_top_p_min_p_in_order():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    seen = torch.rand(5, 40, generator=torch.Generator().manual_seed(1)) < 0.3
    expected = sampling.repetition_penalty(logits, seen, 1.3)
    expected = sampling.top_k(sampling.temperature(expected, 0.7), 20)
    expected = sampling.min_p(sampling.top_p(expected, 0.8), 0.05)
    expected = sampling.draw(expected, torch.Generator().manual_seed(2))
    sampler = Sampler(temperature=0.7, top_k=20, top_p=0.8, min_p=0.05, repetition_penalty=1.3)
    assert torch.equal(sampler(logits, seen, torch.Generator().manual_seed(2)), expected)


def test_temperature_0_is_greedy_after_the_penalty():
    logits, seen = torch.tensor([[3.0, 2.0, -1.0]]), torch.tensor([[True, False, False]])
    assert Sampler(temperature=0)(logits, seen).tolist() == [0]
    assert Sampler(temperature=0, repetition_penalty=2.0)(logits, seen).tolist() == [1]


def test_half_precision_logits_are_sampled_in_float32(monkeypatch):
    drawn_from = []
    monkeypatch.setattr(sampling, "draw", lambda logits, generator: (drawn_from.append(logits), logits.argmax(-1))[1])
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0)).bfloat16()
    for x in (logits, logits.float(), logits.double()):
        Sampler(temperature=0.7, top_p=0.9)(x)
    half, single, double = drawn_from
    assert half.dtype == single.dtype == torch.float32
    assert double.dtype == torch.float64
    assert torch.equal(half, single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": -3}, "top_k is -3"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"min_p": -0.1}, "min_p is -0.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(SeriatimError, match=message):
        Sampler(**options)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    logits = torch.zeros(3, 4)
    logits[1, 2] = bad
    with pytest.raises(SeriatimError, match="logits of row 1 are not finite"):
        Sampler()(logits)
    with pytest.raises(SeriatimError, match="top_p is 0"):
        sampling.top_p(logits, 0)


def test_a_draw_is_that_of_torch_multinomial():
    ours, theirs = (torch.Generator().manual_seed(5) for _ in range(2))
    for batch in (1, 2, 7):
        logits = 3 * torch.randn(batch, 257)
        logits[:, 9:40] = -math.inf
        wanted = torch.multinomial(logits.softmax(-1), 1, generator=theirs).squeeze(-1)
        assert torch.equal(sampling.draw(logits, ours), wanted)
    assert torch.equal(ours.get_state(), theirs.get_state())
