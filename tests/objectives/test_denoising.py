"""Each objective by brute force: what it hides is put back from the question and the answer alone."""

from itertools import pairwise
from random import Random

import pytest
import torch

from seriatim import build
from seriatim.core.errors import SeriatimError
from seriatim.core.prompts import expect_prompt
from seriatim.objectives.birdie import denoising
from seriatim.objectives.birdie.denoising import Masking
from seriatim.objectives.birdie.mixture import denoising_loss, make_batch, objective_losses
from seriatim.objectives.birdie.special import MARKS, PARADIGMS, SpecialTokens

TEXT = 50
SPECIAL = SpecialTokens(TEXT, masks=12)
MASKS = [SPECIAL.mask(index) for index in range(12)]
LENGTH = 30


def draws(count=200):
    """Texts of different tokens, so that each token says where it came from, and what draws."""
    for seed in range(count):
        random = Random(seed)
        yield random.sample(range(TEXT), LENGTH), random


def pairs(name, **options):
    objective = getattr(denoising, name)(length=LENGTH, **options)
    for text, random in draws():
        yield text, *objective.pair(text, SPECIAL, random)


def filled(question, answer):
    """The question with its masks replaced by what the answer says of each."""
    spans, span = {}, []
    for token in answer:
        if token in MASKS:
            spans[token], span = span, []
        else:
            span.append(token)
    assert not span
    return [part for token in question for part in spans.get(token, [token])], spans


@pytest.mark.parametrize(("rate", "span", "count"), [(0.15, 3, 1), (0.5, 3, 5), (0.5, 1, 12), (0.15, 8, 1)])
def test_infilling_is_the_text_again(rate, span, count):
    length = 24 if span == 1 else LENGTH
    objective = denoising.Infilling(length=length, rate=rate, span=span)
    hidden = round(rate * length)
    beginnings = set()
    for text, random in draws():
        text = text[:length]
        question, answer = objective.pair(text, SPECIAL, random)
        again, spans = filled(question, answer)
        assert again == text
        assert [token for token in question if token in MASKS] == MASKS[:count] == list(spans)
        assert sum(map(len, spans.values())) == hidden
        assert min(map(len, spans.values())) > 0
        places = [question.index(mask) for mask in spans]
        assert all(later > earlier + 1 for earlier, later in pairwise(places))
        beginnings |= {question[0] in MASKS, question[-1] in MASKS}
    assert beginnings == {True, False}


def test_places_are_hidden_as_often_but_for_the_ends():
    counts = torch.zeros(LENGTH)
    for text, question, _ in pairs("Infilling", rate=0.5, span=3):
        counts += torch.tensor([float(token not in question) for token in text])
    assert ((counts / 200 - 0.5)[2:-2].abs() < 0.15).all()
    assert (counts > 0.2 * 200).all()


def test_autoencoding_tells_all_and_shows_a_part_in_order():
    for text, question, answer in pairs("Autoencoding", rate=0.5, span=3):
        assert answer == text
        seen = [token for token in question if token not in MASKS]
        assert len(seen) == LENGTH // 2
        assert seen == [token for token in text if token in seen]


def test_autoencoding_with_deshuffling_moves_whole_pieces():
    moved = 0
    for text, question, answer in pairs("Autoencoding", rate=0.5, span=3, deshuffle=True):
        assert answer == text
        assert [token for token in question if token in MASKS] == MASKS[:5]
        seen = [token for token in text if token in question]
        pieces, piece = [], []
        for token in [*question, MASKS[0]]:
            if token in MASKS:
                pieces, piece = [*pieces, piece], []
            else:
                piece.append(token)
        starts = [text.index(piece[0]) for piece in pieces if piece]
        assert all(piece == text[text.index(piece[0]) :][: len(piece)] for piece in pieces if piece)
        assert [token for _, piece in sorted(zip(starts, filter(None, pieces), strict=True)) for token in piece] == seen
        moved += starts != sorted(starts)
    assert moved > 180


def test_copying_and_next_token():
    assert all(question == text == answer for text, question, answer in pairs("Copying"))
    assert all(question == [] and answer == text for text, question, answer in pairs("NextToken"))


@pytest.mark.parametrize(("share", "given"), [(0.75, 22), (0.5, 15), (0.01, 1), (0.99, 29)])
def test_prefix_lm_cuts_in_two(share, given):
    for text, question, answer in pairs("PrefixLM", share=share):
        assert question + answer == text
        assert len(question) == given


@pytest.mark.parametrize(("rate", "shuffled"), [(0.5, 15), (1.0, 30)])
def test_deshuffling_moves_a_part(rate, shuffled):
    most = 0
    for text, question, answer in pairs("Deshuffling", rate=rate):
        assert answer == text
        assert sorted(question) == sorted(text)
        most = max(most, sum(a != b for a, b in zip(question, text, strict=True)))
    assert most == shuffled


@pytest.mark.parametrize("query_first", [False, True])
@pytest.mark.parametrize("spans", [1, 2, 3])
def test_selective_copying_can_be_answered(spans, query_first):
    """Each answer is what stands in the text between the two delimiters."""
    marks = {name: SPECIAL.mark(name) for name in MARKS}
    orders = set()
    for text, question, answer in pairs("SelectiveCopying", spans=spans, query_first=query_first):
        place = question.index(marks["context"])
        query = question[:place] if query_first else question[place + 1 + LENGTH :]
        assert question[place + 1 : place + 1 + LENGTH] == text
        answers, spot = [], 0
        assert query[0] == marks["copy"]
        for one in split(query[1:], marks["copy"]):
            before, behind = split(one[1:], marks["end"])
            assert one[0] == marks["start"]
            assert 1 <= len(before) <= 8
            assert 1 <= len(behind) <= 8
            span = text[text.index(before[-1]) + 1 : text.index(behind[0])]
            assert 4 <= len(span) <= 32
            assert text[text.index(before[0]) :][: len(before) + len(span) + len(behind)] == before + span + behind
            answers += [*span, marks["done"]]
            spot += 1
        assert answers == answer
        assert spot == spans
        assert len(set(answers) - {marks["done"]}) == len(answers) - spans  # they do not overlap
        orders.add(answers[0] < answers[-2])
    assert orders == {True, False}


def split(tokens, mark):
    parts = [[]]
    for token in tokens:
        if token == mark:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def test_special_tokens_are_different_and_no_text():
    ids = [SPECIAL.mark(name) for name in MARKS] + [SPECIAL.paradigm(name) for name in PARADIGMS] + MASKS
    assert sorted(ids) == list(range(TEXT, SPECIAL.size))


ALL = [
    denoising.NextToken(length=30),
    denoising.PrefixLM(length=30),
    denoising.Infilling(length=28),
    denoising.Copying(length=20),
    denoising.Deshuffling(length=20),
    denoising.Autoencoding(length=20, rate=0.5),
    denoising.Autoencoding(length=20, rate=0.5, deshuffle=True),
    denoising.SelectiveCopying(length=20),
]


@pytest.fixture
def windows():
    return torch.stack([torch.randperm(TEXT, generator=torch.Generator().manual_seed(seed))[:32] for seed in range(6)])


@pytest.mark.parametrize("objective", ALL, ids=lambda objective: f"{type(objective).__name__}-{objective.paradigm}")
def test_a_batch_is_question_begin_answer(objective, windows):
    generator = torch.Generator().manual_seed(3)
    batch = make_batch(windows, [objective], SPECIAL, generator=generator)
    random = Random(int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3))))
    random.choices([objective], None, k=6)
    for row in range(6):
        question, answer = objective.pair(windows[row, : objective.length].tolist(), SPECIAL, random)
        tokens, targets, prompt = batch.tokens[row].tolist(), batch.targets[row].tolist(), int(batch.prompt[row])
        if not question:
            assert (tokens, targets, prompt) == (answer[:-1], answer[1:], 0)
            continue
        if objective.paradigm:
            question.insert(random.choice((0, len(question))), SPECIAL.paradigm(objective.paradigm))
        assert tokens[: prompt - 1] == question
        assert tokens[prompt - 1] == SPECIAL.mark("begin")
        assert [target for target in targets if target != -100] == answer
        assert targets[prompt - 1 :][: len(answer)] == answer
        assert tokens[prompt:][: len(answer) - 1] == answer[:-1]
        assert set(tokens[prompt + len(answer) - 1 :]) <= {0}


def test_the_paradigm_token_is_before_or_behind_as_often(windows):
    batch = make_batch(windows.repeat(50, 1), [ALL[3]], SPECIAL, generator=torch.Generator().manual_seed(0))
    first = (batch.tokens[:, 0] == SPECIAL.paradigm("copying")).float().mean()
    assert 0.4 < first < 0.6


def test_weights_say_how_often_each_is_drawn(windows):
    weights = torch.tensor([0.0, 0.0, 0.0, 0.8, 0.2, 0.0, 0.0, 0.0])
    batch = make_batch(windows.repeat(50, 1), ALL, SPECIAL, weights, torch.Generator().manual_seed(0))
    copying = (batch.tokens == SPECIAL.paradigm("copying")).any(1).float().mean()
    deshuffling = (batch.tokens == SPECIAL.paradigm("deshuffling")).any(1).float().mean()
    assert copying + deshuffling == 1
    assert 0.7 < copying < 0.9


def test_the_loss_is_that_of_the_answers_with_the_prompts_told(windows):
    layers = ["gru", {"mixer": "prefix_bidirectional", "inner": "gated_ssm"}]
    model = build("language_model", vocab_size=SPECIAL.size, dim=8, layers=layers).double()
    batch = make_batch(windows, ALL, SPECIAL, generator=torch.Generator().manual_seed(0))
    loss, state = denoising_loss(model, batch)
    log_p = model(batch.tokens, expect_prompt(model.init_state(6), batch.prompt))[0].log_softmax(-1)
    told = [-log_p[b, t, y] for b, row in enumerate(batch.targets.tolist()) for t, y in enumerate(row) if y != -100]
    assert loss.item() == pytest.approx(torch.stack(told).mean().item(), rel=1e-5)
    assert state[1].prompt.tolist() == [0] * 6
    causal = build("language_model", vocab_size=SPECIAL.size, dim=8, layers=["gru"])
    assert denoising_loss(causal, batch)[0] > 0


def test_losses_of_each_objective(windows):
    model = build("language_model", vocab_size=SPECIAL.size, dim=8, layers=["gru"])
    losses = objective_losses(model, windows, ALL, SPECIAL, seed=4)
    assert torch.equal(losses, objective_losses(model, windows, ALL, SPECIAL, seed=4))
    batch = make_batch(windows, ALL[5:6], SPECIAL, generator=torch.Generator().manual_seed(4))
    assert losses[5] == denoising_loss(model, batch)[0]
    assert losses.shape == (8,)


def test_masks_that_are_not_there_are_refused(windows):
    objective = denoising.Infilling(length=32, rate=0.5, span=1)
    assert isinstance(objective, Masking)
    with pytest.raises(SeriatimError, match=r"masks is 12; Infilling.* hides 16 spans"):
        make_batch(windows, [objective], SPECIAL)
    with pytest.raises(SeriatimError, match=r"windows have 32 tokens; .* takes 40"):
        make_batch(windows, [denoising.Copying(length=40)], SPECIAL)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("Copying", {"length": 1}, "length is 1; Copying needs at least 2"),
        ("Copying", {"length": 0}, "length is 0"),
        ("PrefixLM", {"length": 9, "share": 1.0}, "share is 1.0"),
        ("PrefixLM", {"length": 9, "share": "half"}, "share is 'half'; it must be a finite number"),
        ("Infilling", {"length": 9, "rate": 0.0}, "rate is 0.0"),
        ("Autoencoding", {"length": 9, "span": 0}, "span is 0"),
        ("Deshuffling", {"length": 9, "rate": 1.5}, "rate is 1.5"),
        ("SelectiveCopying", {"length": 9, "spans": 2}, "spans is 2; a text of 9 tokens has no room"),
    ],
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(SeriatimError, match=message):
        getattr(denoising, name)(**options)
