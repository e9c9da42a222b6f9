"""A user's own files: what is read, what is refused with row, cause and remedy, and which rows are left out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas
import pytest
from datasets import Dataset

from fedsvd.config.compose import compose
from fedsvd.data.loaders import LoadedData, load_data
from fedsvd.data.node_data import load_node_file
from fedsvd.data.readers import read_table
from fedsvd.data.rows import Columns
from fedsvd.data.text_files import TextLayout, read_texts
from fedsvd.errors import DataError, NodeDataError

FORMATS = ("csv", "jsonl", "parquet", "arrow")


def write(folder: Path, file_format: str, columns: dict[str, list[Any]], name: str = "own") -> Path:
    path = folder / f"{name}.{file_format}"
    match file_format:
        case "csv":
            pandas.DataFrame(columns).to_csv(path, index=False)
        case "jsonl":
            rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        case "parquet":
            Dataset.from_dict(columns).to_parquet(path)
        case "arrow":
            Dataset.from_dict(columns).save_to_disk(path)
    return path


def load(path: Path, *overrides: str, keep: str | None = None) -> LoadedData:
    config = compose([f"data={path.suffix[1:]}", f"data.path={path}", *overrides])
    return load_data(config.data, 0, keep, task=config.model.task)


def classes(loaded: LoadedData) -> list[str]:
    names: list[str] = loaded.splits["train"].features["label"].names
    return names


def all_rows(loaded: LoadedData, *columns: str) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row[name] for name in columns) for split in loaded.splits.values() for row in split)


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(DataError) as caught:
        load(path, *overrides)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def write_text(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize(
    "names", [["NA", "None", "null"], ["01", "1", "1e3"], ["TRUE", "nan", "-0x1"], ["-1", "0", "1"], ["N/A", "", "b"]]
)
def test_classes_are_what_is_written(file_format: str, names: list[str], tmp_path: Path) -> None:
    rows = {"text": [f"{n} text" for n in range(30)], "label": names * 10}
    loaded = load(write(tmp_path, file_format, rows))

    assert sorted(classes(loaded)) == sorted(name for name in names if name)
    missing = [n for n, name in enumerate(rows["label"]) if not name]
    first = 2 if file_format == "csv" else 1
    assert [item.reasons for item in loaded.left_out] == (
        [{"no label": [n + first for n in missing]}] if missing else []
    )


@pytest.mark.parametrize("file_format", FORMATS)
def test_texts_and_answers_may_be_numbers(file_format: str, tmp_path: Path) -> None:
    rows = {"question": [f"{n}+2?" for n in range(20)], "answer": list(range(2, 22))}
    overrides = ["data.label_column=null", "data.response_column=answer", "model=tiny_llama"]
    path = write(tmp_path, file_format, rows)

    loaded = load(path, "data.text_column=question", *overrides)
    assert all_rows(loaded, "text", "response") == Counter((f"{n}+2?", str(n + 2)) for n in range(20))
    assert classes(loaded) == ["any"]
    # One column in two roles.
    loaded = load(path, "data.text_column=answer", *overrides)
    assert all_rows(loaded, "text", "response") == Counter((str(n), str(n)) for n in range(2, 22))


@pytest.mark.slow
def test_numbers_strings_and_booleans_are_one_class_on_every_path(tmp_path: Path) -> None:
    labels: list[Any] = [1, 1.0, "1", "1.0", " 1", True, "true", False, "False", "01", 0.5, "0.50", -0.0]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{n}", "label": label}) + "\n" for n, label in enumerate(labels * 9)))

    assert set(classes(load(path))) == {"1", "true", "false", "False", "01", "0.5", "0.50", "0"}
    for values, expected in (([1, 0], ["0", "1"]), ([1.0, 0.0], ["0", "1"]), ([True, False], ["true", "false"])):
        for file_format in ("jsonl", "parquet", "arrow"):
            rows = {"text": [f"t{n}" for n in range(20)], "label": values * 10}
            assert classes(load(write(tmp_path, file_format, rows, type(values[0]).__name__))) == expected
    floats = {"text": [f"t{n}" for n in range(21)], "label": [*([1.0, 0.0] * 10), None]}
    assert {tuple(classes(load(write(tmp_path, name, floats, "f")))) for name in FORMATS} == {("0", "1")}


def test_an_escaped_surrogate_pair_is_a_character(tmp_path: Path) -> None:
    lines = "".join(f'{{"text": "\\ud83d\\ude00", "label": {n % 2}, "m": ["\\ud83d\\ude00"]}}\n' for n in range(10))
    assert all_rows(load(write_text(tmp_path, "own.jsonl", lines)), "text") == {("\U0001f600",): 10}


def test_written_form_of_a_number_is_its_text(tmp_path: Path) -> None:
    path = write_text(tmp_path, "own.jsonl", "".join(f'{{"text": 2.50, "label": {n % 2}}}\n' for n in range(10)))
    assert all_rows(load(path), "text") == {("2.50",): 10}


@pytest.mark.parametrize("file_format", ["csv", "jsonl", "txt"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_line_feeds_end_a_line(file_format: str, mark: bytes, end: str, tmp_path: Path) -> None:
    texts = [f"form\x0cfeed, line\u2028separator, next\x85line, tab\t, {n}" for n in range(8)]
    content = {
        "csv": ["text", *(f'"{text}"' for text in texts)],
        "jsonl": [f'{{"text": "{text}"}}' for text in texts],
        "txt": texts,
    }[file_format]
    path = write_text(tmp_path, f"own.{file_format}", mark + end.join([*content, ""]).encode())
    assert read_texts(path, TextLayout())[0] == texts


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_carriage_return_alone_is_part_of_a_field(end: str, tmp_path: Path) -> None:
    texts = ["one\rtwo", '"quoted\r, three"', "\r\rfour", "five"]
    path = write_text(tmp_path, "own.csv", end.join(["text", *texts, ""]))
    read = [text.strip('"') for text in texts]
    assert read_texts(path, TextLayout())[0] == read
    rows = [f"{text},{n % 2}" for n, text in enumerate(texts)]
    path = write_text(tmp_path, "two.csv", end.join(["text,label", *rows]))
    table = read_table("csv", str(path), "data.path")
    assert (table.column("text"), table.row_numbers) == (read, [2, 3, 4, 5])


REFUSED: list[tuple[str, str | bytes, list[str]]] = [
    ("own.csv", "text,label\nplain,0\nun été,1\n".encode("cp1252"), ["row 3", "byte 0xe9", "save the file as UTF-8"]),
    ("own.jsonl", '{"text": "a"}\n{"text": "é"}\n'.encode("latin-1"), ["row 2", "byte 0xe9", "UTF-8"]),
    ("own.csv", "text,label\na,0\n".encode("utf-16"), ["row 1", "UTF-8"]),
    ("own.csv", "text,label\na,0\n".encode("utf-16-le"), ["row 1", "NUL byte", "UTF-8"]),
    ("own.csv", "text;label\nfilm, a;0\n", ["row 1", "the header holds ';'", "data.separator=';'"]),
    ("own.csv", "text\tlabel\nfilm\t0\n", ["row 1", "the header holds a tab", "data.separator=tab"]),
    ("own.csv", "text,label\nfilm, said he,0\nfilm,1\n", ["row 2 has 3 fields", "header 2", "quotation marks"]),
    ("own.csv", "text,label\nfilm,0\nfilm\nfilm,1\n", ["row 3 has 1 field and the header 2"]),
    ("own.csv", 'text,label\nfilm,0\n"open,1\nfilm,0\n', ["row 3", "none closes it", "double"]),
    ("own.csv", 'text,label\nfilm,0\n"Good" film,1\n', ["row 3", "quotation marks"]),
    (
        "own.csv",
        'text,label\nfilm,0\n"open,1\nfilm a,0\nfilm b",1\n' + "c,1\nd,0\n" * 2,
        ["row 3", "next one is in row 5", "close it"],
    ),
    ("own.csv", "text,label,text\na,0,b\n", ["several columns of the name 'text'", "rename"]),
    ("own.csv", "", ["is empty", "header"]),
    ("own.csv", "text,label\ra,0\rb,1\r", ["row 1", "a carriage return without a line feed", "save the file with"]),
    ("own.jsonl", '[{"text": "a", "label": 0},\n{"text": "b", "label": 1}]\n', ["row 1 starts an array", "per line"]),
    ("own.jsonl", '[{"text": "a", "label": 0}]', ["row 1 is an array", "one complete JSON object per line"]),
    ("own.jsonl", '{"text": "a"}\n"b"\n', ['row 2 is "b"', "per line"]),
    ("own.jsonl", '{"text": "a"}\n\n{\n', ["row 3 is not JSON", "per line"]),
    ("own.jsonl", '{"text": "a", "text": "b"}\n', ["row 1 has the key 'text' several times"]),
    ("own.jsonl", '{"text": "a", "label": NaN}\n', ["row 1 holds NaN", "null"]),
    ("own.jsonl", '{"text": "a"}\n{"text": "bad \\ud83d"}\n', ["row 2", "half of a surrogate pair", "remove it"]),
    ("own.jsonl", '{"text": ["a", "\\ud800b"], "label": ["O", "O"]}\n', ["row 1", "half of a surrogate pair"]),
    ("own.jsonl", '{"text": "a", "label": ["x\\uDFFF"]}\n', ["row 1", "half of a surrogate pair"]),
    ("own.jsonl", '{"text": "a"}\n{"text": "b", "m": [{"\\ud800": 1}]}\n', ["row 2", "half of a surrogate pair"]),
    ("own.jsonl", '{"text": "a", "label": 1}\n{"text": ["b"], "label": 0}\n', ["row 2", "'text' holds a list"]),
    ("own.jsonl", "[" * 100_000, ["row 1", "per line"]),
]


@pytest.mark.parametrize(("name", "content", "phrases"), REFUSED)
def test_file_that_is_not_what_it_claims_is_refused_on_every_path(
    name: str, content: str | bytes, phrases: list[str], tmp_path: Path
) -> None:
    path = write_text(tmp_path, name, content)
    text = message(path)
    with pytest.raises(NodeDataError) as at_node:
        load_node_file(str(path), Columns("text", None, "label", None), ["0", "1"])
    with pytest.raises(DataError) as predicted:
        read_texts(path, TextLayout())
    for phrase in phrases:
        assert phrase in text
        assert phrase.replace("data.separator", "separator") in str(at_node.value)
        assert phrase.replace("data.separator", "--separator") in str(predicted.value)


@pytest.mark.parametrize(("setting", "mark"), [("';'", ";"), (";", ";"), ("tab", "\t"), ("'\t'", "\t"), ("\\t", "\t")])
def test_separator_is_a_key(setting: str, mark: str, tmp_path: Path) -> None:
    lines = [f"film, {n}{mark}{n % 2}\n" for n in range(10)]
    path = write_text(tmp_path, "own.csv", "".join([f"text{mark}label\n", *lines]))
    loaded = load(path, f"data.separator={setting}")
    assert all_rows(loaded, "text", "label") == Counter((f"film, {n}", n % 2) for n in range(10))


def test_valid_quotation_marks_and_long_texts_are_read(tmp_path: Path) -> None:
    texts = ['say "yes", then\nleave', '5" disk', 'a "b" c', "x" * 200_000, "line one\nline two, done", "no\n\nyes"]
    path = write(tmp_path, "csv", {"text": texts * 2, "label": [n % 2 for n in range(12)]})
    assert set(all_rows(load(path), "text")) == {(text,) for text in texts}
    # A quotation mark inside a text that is not quoted is part of the text.
    path = write_text(tmp_path, "own.csv", "text,label\n\n" + 'a 5" disk,0\n  \nb 3" disk,1\n' * 5)
    assert set(all_rows(load(path), "text")) == {('a 5" disk',), ('b 3" disk',)}


@pytest.mark.parametrize("text", ["line one\nline two", "line one\n", "one\ntwo, three\nfour"])
def test_texts_of_several_lines_may_be_in_the_last_column(text: str, tmp_path: Path) -> None:
    lines = [f"{n % 2},text {n}\n" for n in range(10)]
    path = write_text(tmp_path, "own.csv", "".join(["label,text\n", *lines, f'0,"{text}"\n1,last\n']))
    assert (text,) in all_rows(load(path), "text")
    # Whole rows between two quotation marks, neither of which has a partner, are no text.
    swallowed = [*lines, '0,"open\n', *lines[1:3], '1,closed"\n']
    assert "row 12" in message(write_text(tmp_path, "open.csv", "".join(["label,text\n", *swallowed])))
