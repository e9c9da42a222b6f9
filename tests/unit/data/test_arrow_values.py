"""Values of Parquet and Arrow: numbers of less than double precision, and what Python cannot hold."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from test_user_tables import message

from fedsvd.data.readers import read_table
from fedsvd.data.values import to_class_name, to_text


@pytest.mark.parametrize("kind", [pyarrow.float16(), pyarrow.float32(), pyarrow.float64()])
def test_numbers_of_any_precision_have_their_shortest_text(kind: pyarrow.DataType, tmp_path: Path) -> None:
    values = np.array([0.1, 3.8, 2.0, -0.25], dtype=kind.to_pandas_dtype())
    text = pyarrow.array(values, kind)
    lists = pyarrow.array([[value] for value in values], pyarrow.list_(kind))
    table = pyarrow.table({"text": text, "lists": lists})
    parquet.write_table(table, tmp_path / "own.parquet")
    read = read_table("parquet", str(tmp_path / "own.parquet"), "data.path")

    for convert in (to_text, to_class_name):
        assert [convert(value) for value in read.column("text")] == ["0.1", "3.8", "2", "-0.25"]
    assert read.column("lists") == [[0.1], [3.8], [2.0], [-0.25]]


@pytest.mark.parametrize(
    ("column", "row"),
    [
        (pyarrow.array([0, 4_000_000], pyarrow.date32()), 2),
        (pyarrow.array([0, 253_402_300_800], pyarrow.timestamp("s")), 2),
        (pyarrow.array([[0], [253_402_300_800]], pyarrow.list_(pyarrow.timestamp("s"))), 2),
        (pyarrow.array([2**62, 0], pyarrow.duration("s")), 1),
        (pyarrow.array([None, 1], pyarrow.timestamp("us", tz="Nowhere/None")), 2),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_value_that_python_cannot_hold_is_refused(column: Any, row: int, tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [0, 1], "when": column}), path)

    text = message(path, "data.label_column=when")
    assert f"row {row}: column 'when' holds a value of type " in text
    assert "that cannot be read" in text
    assert "write the column as text" in text
