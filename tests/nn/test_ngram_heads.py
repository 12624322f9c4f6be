from collections import Counter

import pytest
import torch

from seriatim import build
from seriatim.core.errors import SeriatimError
from seriatim.nn.ngram_heads import NGramHead, reference


def head(order, dim=4):
    """A head that adds up what it found and what is there, in float64."""
    made = NGramHead(dim, order).double()
    with torch.no_grad():
        for layer, size in ((made.followers, 1.0), (made.present, 0.0)):
            layer.weight.copy_(size * torch.eye(dim))
            layer.bias.zero_()
    return made


def read(made, tokens, h, reset=None, lengths=None, state=None):
    state = made.init_state(len(tokens)) if state is None else state
    return made(h, tokens, state, reset, lengths)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_it_counts_what_followed(order):
    """On one-hot features a head is the maximum-likelihood model of the next token given the last `order` tokens."""
    tokens = torch.randint(3, (2, 60))
    y, _ = read(head(order, 3), tokens, torch.eye(3, dtype=torch.float64)[tokens])
    for row, ids in enumerate(tokens.tolist()):
        seen = {}
        for t in range(60):
            context = tuple(ids[t - order + 1 : t + 1]) if t >= order - 1 else None
            counts = seen.get(context, Counter())
            expected = [counts[token] / max(1, counts.total()) for token in range(3)]
            assert y[row, t].tolist() == pytest.approx(expected), (row, t)
            if t >= order:  # token t followed the `order` tokens before it
                seen.setdefault(tuple(ids[t - order : t]), Counter())[ids[t]] += 1


def test_a_token_is_not_among_what_followed_it():
    h = torch.randn(1, 3, 4, dtype=torch.float64)
    y, _ = read(head(1), torch.tensor([[7, 7, 7]]), h)
    assert torch.equal(y[:, :2], torch.zeros(1, 2, 4, dtype=torch.float64))
    assert torch.allclose(y[:, 2], h[:, 1])


@pytest.mark.parametrize("order", [1, 2, 4])
def test_it_equals_its_reference(order):
    made = NGramHead(4, order).double()
    tokens, h = torch.randint(2, (3, 40)), torch.randn(3, 40, 4, dtype=torch.float64)
    assert torch.allclose(read(made, tokens, h)[0], reference(made, h, tokens), atol=1e-12)


def test_pieces_with_resets_and_padding_are_the_documents_alone():
    made = head(2)
    tokens, h = torch.randint(2, (3, 31)), torch.randn(3, 31, 4, dtype=torch.float64)
    reset = torch.zeros(3, 31, dtype=torch.bool)
    reset[0, [0, 12, 13]] = reset[1, [4, 30]] = True
    state, outputs, start = None, [], 0
    for size in (3, 9, 0, 1, 17, 1):
        part, padded = slice(start, start + size), slice(start, start + size + 2)
        x, features = tokens[:, padded], h[:, padded].clone()
        lengths = torch.full((3,), size)
        width = x.size(1)
        features[:, size:] = 99.0
        piece = torch.zeros(3, width, dtype=torch.bool)
        piece[:, :size] = reset[:, part]
        y, state = read(made, x, features, piece, lengths, state)
        outputs.append(y[:, :size])
        start += size
    y = torch.cat(outputs, 1)
    for row, begins in enumerate(([0, 12, 13], [0, 4, 30], [0])):
        for first, last in zip(begins, [*begins[1:], 31], strict=True):
            alone = reference(made, h[row : row + 1, first:last], tokens[row : row + 1, first:last])
            assert torch.allclose(y[row : row + 1, first:last], alone), (row, first)


def test_a_model_with_heads_says_what_it_carries():
    plain, with_heads = (build("language_model", vocab_size=9, dim=8, layers=["gru"], ngram_heads=n) for n in ([], [2]))
    assert plain.constant_state
    assert not with_heads.constant_state


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ngram_heads": [0]}, r"ngram_heads\[0\] is 0"),
        ({"ngram_heads": "abc"}, "ngram_heads is 'abc'; it must be a list"),
        ({"ngram_heads": [1], "ngram_after": 3}, "ngram_after is 3; it must be from 0 to the 2 layers"),
    ],
)
def test_wrong_orders_are_refused(options, message):
    with pytest.raises(SeriatimError, match=message):
        build("language_model", vocab_size=9, dim=8, layers=["gru", "gru"], **options)
