import sysconfig
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seriatim.core.errors import SeriatimError
from seriatim.data.corpus import Document, load_corpus, part_of


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def names(part):
    return [document.name for document in part]


def test_the_standard_library_is_split_by_file():
    corpus = load_corpus("stdlib")
    parts = corpus.train, corpus.validation, corpus.test
    everything = [document for part in parts for document in part]
    root = Path(sysconfig.get_path("stdlib"))
    assert len({document.name for document in everything}) == len(everything) > 300
    assert "json/decoder.py" in names(everything)
    assert not any("site-packages" in name or not name.endswith(".py") for name in names(everything))
    assert all((root / name).read_bytes() == data for name, data in everything[::100])
    shares = [len(part) / len(everything) for part in parts]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.03)


def test_a_file_never_moves():
    # Written down once: whoever changes the hash moves every user's test set into their training set.
    assert [part_of(name) for name in ("a.txt", "json/decoder.py", "functools.py", "b/c.txt")] == [0, 0, 1, 0]


def test_other_files_do_not_move_a_file(tmp_path):
    files = {f"{i}/{i}.txt": b"text %d" % i for i in range(100)}
    before = load_corpus(write(tmp_path / "few", files))
    after = load_corpus(write(tmp_path / "many", files | {f"more/{i}.txt": b"more" for i in range(50)}))
    for old, new in zip(before[1:4], after[1:4], strict=True):
        assert set(names(old)) == {name for name in names(new) if not name.startswith("more")}


def test_a_file_is_split_by_position(tmp_path):
    lines = b"".join(b"line %04d\n" % i for i in range(1000))
    path = tmp_path / "book.txt"
    path.write_bytes(lines)
    corpus = load_corpus(path)
    parts = [b"".join(document.data for document in part) for part in corpus[1:4]]
    assert b"".join(parts) == lines
    assert [len(part) / len(lines) for part in parts] == pytest.approx([0.9, 0.05, 0.05], abs=0.01)
    assert all(part.endswith(b"\n") for part in parts)
    assert names(corpus.test) == ["book.txt"]


@settings(max_examples=30)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200))
def test_no_cut_splits_a_character(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(text.encode())
    parts = [document.data.decode() for part in load_corpus(path)[1:4] for document in part]
    assert "".join(parts) == text


def test_a_small_folder_has_each_file_split_by_position(tmp_path):
    corpus = load_corpus(write(tmp_path, {"a.txt": b"a" * 1000, "b.txt": b"b" * 1000}))
    for part, size in zip(corpus[1:4], (900, 50, 50), strict=True):
        assert [(name, len(data)) for name, data in part] == [("a.txt", size), ("b.txt", size)]


def test_a_folder_leaves_out_what_is_no_text(tmp_path):
    files = {f"{i:02}.txt": b"text" for i in range(80)}
    others = {
        "z/photo.bin": b"\x00\x01",
        "z/latin.txt": b"\xe9t\xe9",
        "empty.txt": b"",
        ".hidden": b"x",
        ".git/a": b"x",
        "__pycache__/a": b"x",
    }
    corpus = load_corpus(write(tmp_path, files | others))
    assert sorted(names([*corpus.train, *corpus.validation, *corpus.test])) == sorted(files)
    assert sorted(corpus.skipped) == ["empty.txt", "z/latin.txt", "z/photo.bin"]
    assert names(corpus.train) == sorted(names(corpus.train))
    assert corpus.train[0] == Document(names(corpus.train)[0], b"text")


def test_the_order_is_that_of_the_names(tmp_path):
    folders = {f"{folder}/{name}": b"text" for folder in "cabd" for name in ("y", "x", "z")}
    files = folders | {f"{i}": b"text" for i in range(90)}
    one = load_corpus(write(tmp_path / "one", files))
    other = load_corpus(write(tmp_path / "other", dict(reversed(files.items()))))
    assert one[1:] == other[1:]
    inner = [name for name in names(one.train) if "/" in name]
    assert inner == sorted(inner)


@pytest.mark.parametrize(
    ("files", "source", "message"),
    [
        ({}, "absent.txt", "does not exist"),
        ({"a.txt": b""}, "a.txt", "is empty"),
        ({"a.txt": b"a\0b"}, "a.txt", "NUL"),
        ({"a.txt": b"ab\xff"}, "a.txt", "byte 2 cannot be decoded"),
        ({}, "", "holds no files"),
        ({"a.bin": b"\0", "b.bin": b"\0"}, "", "its 2 files are binary or empty"),
    ],
)
def test_bad_sources_are_refused(tmp_path, files, source, message):
    with pytest.raises(SeriatimError, match=message) as raised:
        load_corpus(write(tmp_path, files) / source)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)
