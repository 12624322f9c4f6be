from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seriatim.core.errors import SeriatimError
from seriatim.data.corpus import Document
from seriatim.data.evaluation import EvaluationBatches
from seriatim.data.tokenizer import ByteTokenizer

BOUNDARY = 256
texts = st.lists(st.binary(max_size=30), min_size=1, max_size=8).filter(lambda texts: any(texts))


def documents(texts):
    return [Document(str(index), text) for index, text in enumerate(texts)]


def targets(batches):
    """Each predicted token with the one before it, sorted."""
    found = []
    for batch in batches:
        kept = batch.targets != -100
        found += zip(batch.tokens[kept].tolist(), batch.targets[kept].tolist(), strict=True)
    return sorted(found)


def wanted(texts):
    ids = [[BOUNDARY, *text, BOUNDARY] for text in texts]
    return sorted(pair for document in ids for pair in pairwise(document))


@given(texts=texts, batch=st.integers(1, 5), window=st.integers(1, 9), data=st.data())
def test_every_token_is_predicted_once(texts, batch, window, data):
    overlap = data.draw(st.integers(0, window - 1))
    batches = EvaluationBatches(documents(texts), ByteTokenizer(), batch, window, overlap=overlap)
    assert targets(batches) == wanted(texts) == targets(batches)
    assert batches.tokens == len(wanted(texts))
    assert batches.bytes == sum(map(len, texts))
    assert sorted(batches.text) == sorted(b"".join(texts))


@given(texts=texts, window=st.integers(1, 9), limit=st.integers(1, 60))
def test_a_limit_cuts_the_same_text_at_any_batch_size(texts, window, limit):
    made = [EvaluationBatches(documents(texts), ByteTokenizer(), batch, window, tokens=limit) for batch in (1, 3)]
    assert targets(made[0]) == targets(made[1])
    assert made[0].tokens == min(limit, len(wanted(texts))) == len(targets(made[0]))
    assert made[0].text == made[1].text
    predicted = [target for _, target in targets(made[0]) if target != BOUNDARY]
    assert sorted(made[0].text) == sorted(predicted)
    assert made[0].bytes == len(predicted)


def test_rows_read_documents_in_order_from_batch_to_batch():
    texts = [bytes([65 + i]) * (5 + i) for i in range(9)]
    batches = list(EvaluationBatches(documents(texts), ByteTokenizer(), 3, 4))
    for row in range(3):
        tokens = torch.cat([batch.tokens[row] for batch in batches])
        nexts = torch.cat([batch.targets[row] for batch in batches])
        reset = torch.cat([batch.reset[row] for batch in batches])
        real = nexts != -100
        assert torch.equal(tokens[1:][real[1:] & real[:-1]], nexts[:-1][real[1:] & real[:-1]])
        assert torch.equal(reset[real], tokens[real] == BOUNDARY)


def test_one_long_document_is_cut_for_the_rows():
    text = bytes(range(100))
    batches = EvaluationBatches(documents([text]), ByteTokenizer(), 4, 8)
    first = next(iter(batches))
    assert first.tokens[:, 0].sort().values.tolist() == [25, 51, 77, 256]
    assert first.reset[:, 0].all()
    assert not first.reset[:, 1:].any()


def test_overlap_gives_context_without_a_target():
    batches = list(EvaluationBatches(documents([b"abcdefghij"]), ByteTokenizer(), 1, 4, overlap=2))
    assert batches[1].tokens.tolist() == [[*b"bcde"]]
    assert batches[1].targets.tolist() == [[-100, -100, *b"ef"]]


def test_the_limit_does_not_take_the_first_names():
    texts = [bytes([i]) * 20 for i in range(60)]
    text = EvaluationBatches(documents(texts), ByteTokenizer(), 4, 8, tokens=200).text
    assert not set(text) <= set(range(20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 4}, "overlap is 4"),
        ({"tokens": -1}, "tokens is -1"),
        ({"window": 0}, "window is 0"),
        ({"documents": []}, "empty"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"documents": documents([b"abc"]), "tokenizer": ByteTokenizer(), "batch": 2, "window": 4}
    with pytest.raises(SeriatimError, match=message):
        EvaluationBatches(**{**arguments, **options})
