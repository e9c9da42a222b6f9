"""Public text for statistics that cost no privacy."""

from pathlib import Path

import pytest

from fedsvd.data.public_text import EMBEDDED, MAX_TEXTS, load_public_text, spread
from fedsvd.errors import DataError


def test_texts_are_spread_evenly() -> None:
    assert spread(list("abcdefghij"), 4) == ["a", "c", "f", "h"]
    assert spread(["a", "b"], 4) == ["a", "b"]


def test_embedded_texts_are_different_sentences() -> None:
    texts = load_public_text(EMBEDDED)

    assert len(texts) == len(set(texts)) == MAX_TEXTS
    assert all(len(text.split()) >= 4 for text in texts)


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl"])
def test_an_own_file_is_read_without_repetitions(name: str, tmp_path: Path) -> None:
    lines = [f"text {i % 150}" for i in range(500)]
    own = tmp_path / name
    own.write_text("".join(f'{{"text": "{line}"}}\n' if name.endswith("l") else f"{line}\n" for line in lines))

    assert load_public_text(str(own)) == lines[:150]


def test_a_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    few, empty = tmp_path / "few.txt", tmp_path / "empty.txt"
    few.write_text("one\ntwo\n", encoding="utf-8")
    empty.touch()
    for path, message in ((few, "2 different texts"), (empty, "empty"), (tmp_path / "missing.txt", "is not a file")):
        with pytest.raises(DataError, match=message) as caught:
            load_public_text(str(path))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("bad.jsonl", b'{"body": "a"}\n', "has no column 'text'"),
        ("bad.txt", b"\xff\n", "UTF-8"),
        ("a.txt", b"\n", "no text"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_as_in_a_configuration(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_public_text(str(path))
    assert str(caught.value).startswith(f"model.public_text = '{path}'")
