import json
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seriatim.core.errors import SeriatimError
from seriatim.data.batches import ContiguousBatches, PackedBatches
from seriatim.data.corpus import Document
from seriatim.data.stream import TokenStream
from seriatim.data.tokenizer import ByteTokenizer

BOUNDARY = 256
KINDS = [PackedBatches, ContiguousBatches]
texts = st.lists(st.binary(max_size=40), min_size=1, max_size=12).filter(lambda t: sum(map(len, t)) > 60)


def documents(*data):
    return [Document(str(index), text) for index, text in enumerate(data)]


def numbered(count=40, longest=60, seed=0):
    """Documents of letters, each of its own text."""
    rng = np.random.default_rng(seed)
    return documents(*[rng.integers(97, 123, rng.integers(1, longest), np.uint8).tobytes() for _ in range(count)])


def pairs(texts):
    """Every (token, next token) of the documents with their boundaries."""
    ids = [[BOUNDARY, *text.data, BOUNDARY] for text in texts]
    return [pair for document in ids for pair in pairwise(document)]


def take(batches, count):
    return [next(batches) for _ in range(count)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_stream_lays_documents_end_to_end():
    stream = TokenStream(documents(b"ab", b"", b"c"), ByteTokenizer())
    assert stream.tokens.tolist() == [256, 97, 98, 256, 256, 99, 256]
    assert stream.tokens.dtype == np.uint16
    assert stream.starts.tolist() == [0, 3, 4]
    assert stream.lengths.tolist() == [3, 1, 2]
    assert len(stream) == 6


@given(texts=texts, window=st.integers(1, 9), batch=st.integers(1, 4))
def test_an_epoch_holds_every_token_once_but_a_remainder(texts, window, batch):
    docs = documents(*texts)
    for kind in KINDS:
        batches = kind(docs, ByteTokenizer(), batch, window)
        read = take(batches, batches.batches_per_epoch)
        found = [
            pair for b in read for pair in zip(b.tokens.flatten().tolist(), b.targets.flatten().tolist(), strict=True)
        ]
        left = pairs(docs)
        for pair in found:
            left.remove(pair)  # raises where it was there more often than in the text
        assert len(left) < 2 * batch * window


@pytest.mark.parametrize("kind", KINDS)
def test_reset_is_at_the_boundaries_and_where_a_row_begins_afresh(kind):
    batches = kind(numbered(), ByteTokenizer(), 3, 16)
    afresh = 0
    for index, batch in enumerate(take(batches, 3 * batches.batches_per_epoch)):
        boundary = batch.tokens == BOUNDARY
        first = torch.zeros_like(boundary)
        if kind is PackedBatches or index % batches.batches_per_epoch == 0:
            first[:, 0] = True
        assert torch.equal(batch.reset, boundary | first)
        afresh += int((first & ~boundary).sum())
    assert afresh > 0


def test_contiguous_rows_go_on_where_they_stopped():
    batches = ContiguousBatches(numbered(), ByteTokenizer(), 3, 16)
    read = take(batches, batches.batches_per_epoch)
    tokens = torch.cat([batch.tokens for batch in read], 1)
    targets = torch.cat([batch.targets for batch in read], 1)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    texts = {document.data for document in numbered()}
    for row in tokens:  # the whole documents inside a row are documents of the corpus
        inner = bytes(min(token, 255) for token in row.tolist()).split(b"\xff")[1:-1]
        assert len(inner) > 2
        assert set(inner) <= texts


def test_packed_rows_come_in_random_order():
    batches = PackedBatches(numbered(), ByteTokenizer(), 2, 16)
    first = torch.cat([batch.tokens for batch in take(batches, batches.batches_per_epoch)])
    follows = sum(bool(torch.equal(a[-1:], b[:1])) for a, b in pairwise(first))
    assert follows < len(first) / 4


def test_packed_rows_may_be_fewer_than_a_batch():
    batch = next(PackedBatches(documents(b"abcdefg"), ByteTokenizer(), 5, 8))
    assert batch.tokens.tolist() == [[256, *b"abcdefg"]] * 5
    assert batch.targets.tolist() == [[*b"abcdefg", 256]] * 5


@pytest.mark.parametrize("kind", KINDS)
def test_epochs_and_seeds_differ_and_repeat(kind):
    def epoch(seed, number):
        batches = kind(numbered(), ByteTokenizer(), 3, 16, seed)
        read = take(batches, (number + 1) * batches.batches_per_epoch)
        return torch.stack([batch.tokens for batch in read[-batches.batches_per_epoch :]])

    assert torch.equal(epoch(0, 1), epoch(0, 1))
    assert not torch.equal(epoch(0, 0), epoch(0, 1))
    assert not torch.equal(epoch(0, 0), epoch(1, 0))


def test_windows_of_one_document_are_shuffled_by_seed_and_epoch():
    def epoch(seed, number):
        batches = PackedBatches(documents(bytes(range(199))), ByteTokenizer(), 5, 8, seed)
        return torch.cat([batch.tokens for batch in take(batches, 5 * (number + 1))[-5:]])

    orders = [epoch(0, 0), epoch(0, 1), epoch(1, 0)]
    assert all(sorted(order.tolist()) == sorted(orders[0].tolist()) for order in orders)
    assert not any(torch.equal(one, other) for one, other in combinations(orders, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", [0, 1, 13, 200])
def test_a_position_is_resumed_exactly(kind, read):
    batches = kind(numbered(), ByteTokenizer(), 3, 16, seed=5)
    take(batches, read)
    position = json.loads(json.dumps(batches.state_dict()))
    again = kind(numbered(), ByteTokenizer(), 3, 16, seed=5)
    again.load_state_dict(position)
    for one, other in zip(take(batches, 60), take(again, 60), strict=True):
        assert same(one, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_position_in_other_data_is_refused(kind):
    position = kind(numbered(), ByteTokenizer(), 3, 16).state_dict()
    for other in (kind(numbered(seed=1), ByteTokenizer(), 3, 16), kind(numbered(), ByteTokenizer(), 3, 16, seed=1)):
        with pytest.raises(SeriatimError, match="cannot be resumed"):
            other.load_state_dict(position)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_arguments_are_refused(kind):
    with pytest.raises(SeriatimError, match=r"has 4 tokens, fewer than one window; window is 5"):
        kind(documents(b"abc"), ByteTokenizer(), 1, 5)
    with pytest.raises(SeriatimError, match="empty"):
        kind([], ByteTokenizer(), 1, 5)
    with pytest.raises(SeriatimError, match="batch is 0"):
        kind(documents(b"abc"), ByteTokenizer(), 0, 5)


def test_contiguous_needs_a_window_in_every_row():
    with pytest.raises(SeriatimError, match=r"has 41 tokens.*batch is 3 and window is 16"):
        ContiguousBatches(documents(b"a" * 40), ByteTokenizer(), 3, 16)
