"""Properties of the reader: random tables of strings have the same texts and classes in every format and command."""

import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsvd.data.node_data import load_node_file
from fedsvd.data.readers import FILE_FORMATS, read_table
from fedsvd.data.rows import Columns, Rows, select_rows
from fedsvd.data.text_files import TextLayout, read_texts
from fedsvd.data.values import to_class_name
from fedsvd.errors import DataError

NAMES = ("text", "label", "pair")
# No surrogates, which are no characters, and no NUL, which CSV refuses.
CHARACTERS = st.characters(exclude_categories=("Cs",), exclude_characters="\0")
CELLS = st.one_of(
    st.text(CHARACTERS, max_size=12),
    st.sampled_from(
        ["NA", "None", "null", "01", "1", "1.0", "-1", "TRUE", "1e3", "nan", "", " ", "\u2028", "\x0c", '"']
    ),
    st.text(st.sampled_from(",;\t|\"'\n\r \\{}[]#ab"), max_size=8),
)
TABLES = st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=8)


def write(folder: Path, rows: list[tuple[str, str, str]], separator: str) -> dict[str, Path]:
    paths = {name: folder / f"own.{name}" for name in FILE_FORMATS}
    columns = {name: [row[index] for row in rows] for index, name in enumerate(NAMES)}
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerows([NAMES, *rows])
    paths["csv"].write_text(stream.getvalue(), encoding="utf-8", newline="")
    lines = [
        json.dumps(dict(zip(NAMES, row, strict=True)), ensure_ascii=index % 2 == 0) for index, row in enumerate(rows)
    ]
    paths["jsonl"].write_text("\n".join(lines), encoding="utf-8", newline="")
    Dataset.from_dict(columns).to_parquet(paths["parquet"])
    Dataset.from_dict(columns).save_to_disk(paths["arrow"])
    return paths


def read(file_format: str, path: Path, separator: str) -> Rows:
    return select_rows(
        read_table(file_format, str(path), "data.path", separator=separator), Columns("text", "pair", "label", None)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(TABLES, st.sampled_from([",", ";", "\t"]))
def test_all_formats_and_paths_read_the_same(rows: list[tuple[str, str, str]], separator: str) -> None:
    usable = [row for row in rows if all(cell.strip() for cell in row)]
    with tempfile.TemporaryDirectory() as folder:
        paths = write(Path(folder), rows, separator)
        for file_format, path in paths.items():
            selected = read(file_format, path, separator)
            assert selected.columns["text"] == [text for text, _, _ in usable]
            assert selected.columns["text_pair"] == [pair for _, _, pair in usable]
            assert selected.columns["label"] == [to_class_name(label) for _, label, _ in usable]
            assert sum(map(len, selected.left_out.reasons.values())) == len(rows) - len(usable)
            if not usable:
                continue
            texts, pairs, _ = read_texts(path, TextLayout(text_pair=("pair",), separator=separator))
            assert (texts, pairs) == (
                [text for text, _, pair in rows if text.strip() and pair.strip()],
                [pair for text, _, pair in rows if text.strip() and pair.strip()],
            )
            if file_format != "arrow":
                names = sorted({to_class_name(label) for _, label, _ in usable})
                node = load_node_file(str(path), Columns("text", "pair", "label", None), names, separator=separator)
                assert list(node["text"]) == [text for text, _, _ in usable]
                assert [names[label] for label in node["label"]] == selected.columns["label"]


@given(CELLS)
def test_class_names_are_canonical(cell: str) -> None:
    name = to_class_name(cell)
    assert to_class_name(name) == name
    assert name in (cell.strip(), cell.strip().partition(".")[0], "0")


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_a_data_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for file_format in ("csv", "jsonl", "parquet", "arrow"):
            path = Path(folder) / f"own.{file_format}"
            path.write_bytes(content)
            with contextlib.suppress(DataError):
                table = read_table(file_format, str(path), "data.path")
                assert all(len(list(table.column(name))) == len(table.row_numbers) for name in table.names)
