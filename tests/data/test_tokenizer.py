import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seriatim.core.errors import SeriatimError
from seriatim.data.tokenizer import ByteTokenizer, HFTokenizer, load_tokenizer

TEXT = "def naïve(λ): return '🙂 日本'  # <end>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """bpe.json: byte-level, with an end-of-text token; plain.json: the same without one."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, special in (("bpe", ["<|endoftext|>"]), ("plain", [])):
        made = tokenizers.Tokenizer(tokenizers.models.BPE())
        made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, special_tokens=special, show_progress=False
        )
        made.train_from_iterator([TEXT * 3, "the cat sat on the mat " * 5], trainer)
        made.save(str(folder / f"{name}.json"))
    return folder


def streamed(tokenizer, ids):
    decoder = tokenizer.decoder()
    return [decoder.feed(int(token)) for token in ids] + [decoder.flush()]


def test_bytes():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode("é!")
    assert ids.tolist() == [0xC3, 0xA9, 0x21]
    assert ids.dtype == np.int64
    assert tokenizer.decode([256, 0xC3, 0xA9, 256]) == "é".encode()
    assert (tokenizer.vocab_size, tokenizer.boundary) == (257, 256)
    assert load_tokenizer(tokenizer.spec()).decode(ids) == "é!".encode()
    assert tokenizer.compact(b"abc").dtype == np.uint8


@pytest.mark.parametrize("name", ["bytes", "bpe.json", "plain.json"])
def test_every_tokenizer_reads_back_and_streams_what_it_wrote(folder, name):
    tokenizer = load_tokenizer(name if name == "bytes" else str(folder / name))
    ids = tokenizer.encode(TEXT)
    assert tokenizer.decode(ids) == TEXT.encode()
    assert tokenizer.encode(TEXT.encode()).tolist() == ids.tolist()
    assert tokenizer.encode("").tolist() == []
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.boundary < tokenizer.vocab_size
    assert tokenizer.boundary not in ids


@given(ids=st.lists(st.integers(0, 256), max_size=40))
def test_any_bytes_stream_as_they_decode(ids):
    tokenizer = ByteTokenizer()
    pieces = b"".join(bytes([i]) for i in ids if i < 256)
    if 256 not in ids[:-1]:
        assert "".join(streamed(tokenizer, ids)) == pieces.decode(errors="replace")
    assert all(not any("\ud800" <= c <= "\udfff" for c in piece) for piece in streamed(tokenizer, ids))


@given(st.data())
def test_any_ids_of_a_bpe_stream_without_holding_back(folder, data):
    tokenizer = load_tokenizer(str(folder / "bpe.json"))
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    decoder = tokenizer.decoder()
    for token in ids:
        decoder.feed(token)
        assert len(decoder._pending) < 4
        assert len(decoder._shown) <= 4


def test_half_a_character_is_held_back_and_shown_at_the_end():
    assert streamed(ByteTokenizer(), "é".encode()) == ["", "é", ""]
    assert streamed(ByteTokenizer(), [0xC3]) == ["", "\ufffd"]
    assert streamed(ByteTokenizer(), [0xC3, 256, 0x41]) == ["", "\ufffd", "A", ""]


def test_the_boundary_is_the_files_own_or_one_id_more(folder):
    bpe, plain = (HFTokenizer(folder / f"{name}.json") for name in ("bpe", "plain"))
    assert bpe.boundary == bpe._inner.token_to_id("<|endoftext|>")
    assert bpe.vocab_size == bpe._inner.get_vocab_size()
    assert plain.boundary == plain._inner.get_vocab_size() == plain.vocab_size - 1


def test_a_special_token_written_out_in_a_text_is_text(folder):
    tokenizer = HFTokenizer(folder / "bpe.json")
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.boundary not in ids
    assert tokenizer.decode(ids) == b"a<|endoftext|>b"
    assert tokenizer.decode([*ids, tokenizer.boundary]) == b"a<|endoftext|>b"


def test_a_spec_makes_the_tokenizer_again(folder, tmp_path):
    tokenizer = HFTokenizer(folder / "bpe.json")
    spec = json.loads(json.dumps(tokenizer.spec()))
    assert load_tokenizer(spec).encode(TEXT).tolist() == tokenizer.encode(TEXT).tolist()
    (tmp_path / "tokenizer.json").write_text(tokenizer.json)
    assert load_tokenizer({**spec, "path": "/absent"}, folder=tmp_path).boundary == tokenizer.boundary
    (tmp_path / "tokenizer.json").write_text((folder / "plain.json").read_text())
    with pytest.raises(SeriatimError, match="has changed"):
        load_tokenizer(spec, folder=tmp_path)


def test_bad_tokenizers_are_refused(folder, tmp_path):
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SeriatimError, match=r"a\.json cannot be read"):
        load_tokenizer(str(tmp_path / "a.json"))
    with pytest.raises(SeriatimError, match=r"'absent'; it must be 'bytes' or the path"):
        load_tokenizer("absent")
    with pytest.raises(SeriatimError, match="'tokenizer' must be"):
        load_tokenizer({"tokenizer": "morse"})


def test_the_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(SeriatimError, match=r"pip install 'seriatim\[text\]'"):
        load_tokenizer(str(folder / "bpe.json"))
