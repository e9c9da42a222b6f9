"""Whether a file for predictions is a table or has one text per line, by suffix, separator and first line."""

import re
from pathlib import Path

import pytest

from fedsvd.cli import main
from fedsvd.data.public_text import load_public_text
from fedsvd.data.text_files import TextLayout, read_conversations, read_texts
from fedsvd.errors import ConfigError, DataError, PublicTextError

TABLE = "id\tnote\turgency\n1\tfever, and chills\thigh\n2\tfollow-up visit\tlow\n"
NOTES = ["fever, and chills", "follow-up visit"]
NAMES = ("note", "text")


def write(path: Path, text: str = TABLE) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "separator", "given"),
    [("a.tsv", ",", None), ("a.TSV", ";", None), ("a.txt", ",", "tab"), ("a", ",", "\t"), ("a.csv", "tab", None)],
)
def test_a_table_is_read_by_its_column(name: str, separator: str, given: str | None, tmp_path: Path) -> None:
    layout = TextLayout(NAMES, separator=separator, given_separator=given)
    assert read_texts(write(tmp_path / name), layout)[0] == NOTES


def test_a_given_separator_is_that_of_a_file_of_any_suffix(tmp_path: Path) -> None:
    for name in ("a.tsv", "a.txt", "a.csv"):
        path = write(tmp_path / name, TABLE.replace("\t", ";"))
        assert read_texts(path, TextLayout(NAMES, given_separator=";"))[0] == NOTES


def test_a_separator_for_a_file_without_any_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"note": "fever"}\n')
    with pytest.raises(ConfigError, match=r"--separator ';' has no effect on .*a\.jsonl, a \.jsonl file: leave it out"):
        read_texts(path, TextLayout(NAMES, given_separator=";"))


@pytest.mark.parametrize("separator", ["\t", ";", ",", "|", "^"])
def test_a_table_with_the_suffix_of_a_text_file_is_refused(separator: str, tmp_path: Path) -> None:
    shown = "tab" if separator == "\t" else f"'{separator}'"
    path = write(tmp_path / "a.txt", '"id"\t"note"\r\n1\tfever\n'.replace("\t", separator))
    message = f"--file {path} would be read as one text per line, but its first line is the header of a table with the "
    message += f"column 'note': give --separator {shown}, or name the file .csv or .tsv."
    with pytest.raises(DataError, match=re.escape(message)):
        read_texts(path, TextLayout(NAMES, separator="^"))


@pytest.mark.parametrize("first", ["note", "A note, text", "text and note", "Please note; text|s"])
def test_lines_of_text_are_no_header(first: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", f"{first}\nid,note\n")
    assert read_texts(path, TextLayout(NAMES))[0] == [first, "id,note"]


@pytest.mark.parametrize("name", ["a.json", "a.ndjson", "a.txt", "a"])
@pytest.mark.parametrize(
    ("content", "found", "remedy"),
    [
        ('\n{"note": "fever"}\n{"note": "chills"}\n', "its first line is a JSON object", "name the file .jsonl. If"),
        (
            '{"note": "fever"}\nnote\n',
            "its first line is a JSON object",
            "name the file .jsonl. If that line is a text",
        ),
        ('[{"role": "user"}]\n[{"role": "user"}]\n', "its first line is a JSON array of objects", "write one complete"),
        ('[{"note": "fever"}, {"note": "chills"}]', "its first line is a JSON array of objects", "write one complete"),
        ('[\n {"note": "fever"},\n\n {"note":\n "chills"}\n]\n', "it is a JSON array of objects", "write one complete"),
        ('{\r\n "rows": ["fever"]\r\n}\r\n', "it is a JSON object", "write one complete object per line and name the"),
    ],
)
def test_json_with_the_suffix_of_a_text_file_is_refused(
    content: str, found: str, remedy: str, name: str, tmp_path: Path
) -> None:
    path = write(tmp_path / name, content)
    message = f"{path} would be read as one text per line, but {found}: {remedy}"
    with pytest.raises(DataError, match=re.escape(message)):
        read_texts(path, TextLayout(NAMES))


def test_json_with_another_suffix_is_no_public_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", '{"text": "a text"}\n')
    with pytest.raises(PublicTextError, match=r"its first line is a JSON object: name the file \.jsonl"):
        load_public_text(str(path))


@pytest.mark.parametrize(
    "first", ["{", "[1] A note", "{}", "[1, 2]", '"note"', "[{note}]", "[" * 100_000, '{"a": ' * 9999]
)
def test_lines_that_begin_like_json_are_texts(first: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", f'{first}\n{{"note": "fever"}}\n')
    assert read_texts(path, TextLayout(NAMES))[0] == [first, '{"note": "fever"}']


def test_public_text_has_one_text_per_line_in_a_file_with_tabs(tmp_path: Path) -> None:
    texts = read_texts(write(tmp_path / "a.tsv"), TextLayout(formats=("jsonl",)), "model.public_text")[0]
    assert texts == TABLE.splitlines()


def test_conversations_are_read_from_the_same_tables(tmp_path: Path) -> None:
    cell = '"[{""role"": ""user"", ""content"": ""Hello""}]"'
    for name, given in (("a.tsv", None), ("a.txt", "tab")):
        path = write(tmp_path / name, f"id\tmessages\n1\t{cell}\n")
        found = read_conversations(path, "messages", TextLayout(given_separator=given))
        assert found is not None
        assert found[0] == [[{"role": "user", "content": "Hello"}]]


def test_a_separator_without_a_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "run", "--text", "a film", "--separator", ";"]) != 0
    assert "--separator ';' has no effect without --file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("question,text", ("a", "b")),
        ("text,question", ("b", "a")),
        ("text,text_pair", ("a", "b")),
        ("text_pair,text,question", ("c", "b")),
    ],
)
def test_pairs_are_in_the_runs_columns_or_in_those_of_general_names(
    header: str, expected: tuple[str, str], tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", f"{header}\n{','.join('abc'[: header.count(',') + 1])}\n")
    texts, pairs, _ = read_texts(path, TextLayout(("question", "text"), ("text", "text_pair")))
    assert (texts, pairs) == ([expected[0]], [expected[1]])


@pytest.mark.parametrize(
    ("names", "header", "missing"),
    [
        (("question", "text"), "text,other", "'question'"),
        (("question", "reply"), "question,text_pair", "'reply'"),
        (("question", "reply"), "reply,text", "'question'"),
        (("question", "reply"), "text,other", "'question', 'reply'"),
        (("text", "text_pair"), "text,other", "'text_pair'"),
    ],
)
def test_a_file_without_both_columns_of_pairs_is_refused(
    names: tuple[str, str], header: str, missing: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.csv", f"{header}\na,b\n")
    first, second = names
    general = "" if first == "text" else ", or 'text' and 'text_pair'"
    message = f"has no column {missing}; it has {header.replace(',', ', ')}. Pairs of texts are read from the columns "
    message += f"{first!r} and {second!r}{general}: rename"
    with pytest.raises(DataError, match=re.escape(message)):
        read_texts(path, TextLayout((first, "text"), (second, "text_pair")))
