"""Rows that are left out, columns in several roles, and classes that are matched by name."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from test_user_tables import FORMATS, all_rows, classes, load, write

from fedsvd import data
from fedsvd.config import DataConfig
from fedsvd.config.compose import compose
from fedsvd.data.labeled import load_all_texts
from fedsvd.data.loaders import load_data
from fedsvd.data.text_files import TextLayout, read_texts
from fedsvd.errors import DataError
from fedsvd.runtime.data import clear_data_cache, load_held_out, load_partition
from fedsvd.runtime.description import describe_run

SPLIT: dict[str, Any] = {"dirichlet_alpha": 1.0, "min_partition_size": 1, "seed": 0}


def rows(count: int = 24) -> dict[str, list[str]]:
    return {
        "note": [f"note {n}" for n in range(count)],
        "reply": [f"reply {n}" for n in range(count)],
        "urgency": [("low", "high")[n % 2] for n in range(count)],
        "clinic": [str(10 - n % 3) for n in range(count)],
    }


def with_gaps() -> dict[str, list[str]]:
    columns = rows()
    for name, row in (("note", 3), ("note", 5), ("reply", 5), ("reply", 7), ("urgency", 11), ("clinic", 13)):
        columns[name][row] = ""
    return columns


@pytest.mark.parametrize("file_format", FORMATS)
def test_rows_are_counted_by_reason_with_their_numbers(file_format: str, tmp_path: Path) -> None:
    path = write(tmp_path, file_format, with_gaps())
    columns = ["data.text_column=note", "data.text_pair_column=reply", "data.label_column=urgency"]
    loaded = load(path, *columns, "data.test_fraction=0.1", keep="clinic")

    first = 2 if file_format == "csv" else 1
    [left_out] = loaded.left_out
    expected = {"no text": [3, 5], "no second text": [7], "no label": [11], "no clinic (partition.column)": [13]}
    assert left_out.reasons == {reason: [row + first for row in numbers] for reason, numbers in expected.items()}
    assert str(left_out) == (
        f"data.path = '{path}': 5 of 24 rows are left out: 2 with no text (rows {3 + first}, {5 + first}); "
        f"1 with no second text (row {7 + first}); 1 with no label (row {11 + first}); "
        f"1 with no clinic (partition.column) (row {13 + first})"
    )
    assert not any("None" in text for text, _ in all_rows(loaded, "text_pair", "text"))
    assert sum(map(len, loaded.splits.values())) == 19


def test_partition_does_not_change_which_rows_are_held_out(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", with_gaps())
    columns = ["data.text_column=note", "data.label_column=urgency"]
    for extra in ([], ["data.evaluate_on=validation", "data.max_train_examples=15", "partition.min_partition_size=1"]):
        alone, by_clinic = load(path, *columns, *extra), load(path, *columns, *extra, keep="clinic")
        assert list(alone.splits["test"]["text"]) == list(by_clinic.splits["test"]["text"])
        assert set(by_clinic.splits["train"]["text"]) <= set(alone.splits["train"]["text"])
        assert set(by_clinic.splits["train"].column_names) == {"text", "label", "clinic"}


def test_validation_texts_are_some_of_the_training_texts(tmp_path: Path) -> None:
    path = write(tmp_path, "csv", rows(40))
    columns = ["data.text_column=note", "data.label_column=urgency", "data.validation_fraction=0.25"]
    evaluated = {name: load(path, *columns, f"data.evaluate_on={name}").splits for name in ("test", "validation")}
    train, test = (list(evaluated["test"][name]["text"]) for name in ("train", "test"))
    kept, validation = (list(evaluated["validation"][name]["text"]) for name in ("train", "test"))

    assert sorted([*kept, *validation]) == sorted(train)
    assert not {*kept, *validation} & set(test)
    assert (len(train), len(validation)) == (32, 8)


def test_second_text_of_a_language_model_may_be_empty(tmp_path: Path) -> None:
    columns = rows()
    columns["reply"][4] = ""
    overrides = ["data.text_column=note", "data.text_pair_column=reply", "data.label_column=null"]
    for name in FORMATS:
        loaded = load(write(tmp_path, name, columns), *overrides, "data.response_column=urgency", "model=tiny_llama")
        assert ("note 4", "", "low") in all_rows(loaded, "text", "text_pair", "response")
        assert not loaded.left_out


def test_a_classifier_ignores_the_answers_that_come_with_a_dataset(tmp_path: Path) -> None:
    columns = rows()
    columns["reply"][4] = columns["reply"][5] = ""
    own = {"text_column": "note", "label_column": "urgency", "response_column": "reply"}
    for name in FORMATS:
        # As in a dataset's own YAML file; as an override, the column is refused.
        config = DataConfig(name, path=str(write(tmp_path, name, columns)), **own)
        counts = {}
        for task in ("sequence_classification", "causal_lm"):
            loaded = load_data(config, 0, task=task)
            counts[task] = (sum(map(len, loaded.splits.values())), len(loaded.left_out))
        assert counts == {"sequence_classification": (24, 0), "causal_lm": (22, 1)}


@pytest.mark.parametrize("column", ["urgency", "text", "label", "response", "clinic"])
def test_one_column_can_have_two_roles(column: str, tmp_path: Path) -> None:
    """The names of the file's columns may be those of other roles."""
    columns = rows()
    columns = {"text": columns["clinic"], "label": columns["clinic"], "response": columns["clinic"], **columns}
    overrides = ["data.text_column=note", "data.label_column=urgency"]
    loaded = load(write(tmp_path, "csv", columns), *overrides, keep=column)
    names = classes(loaded)
    parts = data.partition(
        loaded.splits["train"], name="by_column", num_partitions=2 if column == "urgency" else 3, column=column, **SPLIT
    )

    assert sum(map(len, parts)) == len(loaded.splits["train"])
    clinics = {note: int(clinic) for note, clinic in zip(columns["note"], columns["clinic"], strict=True)}
    if column == "urgency":
        # Clients are numbered like the classes.
        assert [{names[label] for label in part["label"]} for part in parts] == [{"low"}, {"high"}]
    else:
        # Numbers are sorted as numbers: 8, 9, 10.
        assert [{clinics[text] for text in part["text"]} for part in parts] == [{8}, {9}, {10}]
    with pytest.raises(DataError, match=f"partition.column = '{column}', which has . values"):
        data.partition(loaded.splits["train"], name="by_column", num_partitions=5, column=column, **SPLIT)


@pytest.mark.parametrize("values", [["01", "2", "10"], ["2.5", "9", "10.25"], ["10", "9", "b"]])
def test_clients_are_numbered_by_value(values: list[str], tmp_path: Path) -> None:
    """As numbers if all values are numbers, as strings otherwise; "01" and "1" are different values."""
    columns = rows() | {"clinic": [values[n % 3] for n in range(24)]}
    overrides = ["data.text_column=note", "data.label_column=urgency"]
    for name in FORMATS:
        train = load(write(tmp_path, name, columns), *overrides, keep="clinic").splits["train"]
        parts = data.partition(train, name="by_column", num_partitions=3, column="clinic", **SPLIT)
        assert [set(part["clinic"]) for part in parts] == [{value} for value in values]


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
def test_classes_are_matched_by_name_and_hidden_labels_left_out(file_format: str, tmp_path: Path) -> None:
    def save(name: str, names: list[str], numbers: list[int]) -> Path:
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        texts = [f"{names[number] if number >= 0 else 'hidden'} {n}" for n, number in enumerate(numbers)]
        dataset = Dataset.from_dict({"text": texts, "label": numbers}, features=features)
        path = tmp_path / f"{name}.{file_format}"
        dataset.to_parquet(path) if file_format == "parquet" else dataset.save_to_disk(path)
        return path

    train, test = save("train", ["yes", "no"], [0, 1, -1] * 4), save("test", ["maybe", "no", "yes"], [1, 2] * 4)
    loaded = load(train, f"data.test_path={test}")

    assert classes(loaded) == ["yes", "no"]
    for split in loaded.splits.values():
        assert all(
            text.split()[0] == ["yes", "no"][label] for text, label in zip(split["text"], split["label"], strict=True)
        )
    assert [item.reasons for item in loaded.left_out] == [{"hidden label (-1)": [3, 6, 9, 12]}]
    with pytest.raises(DataError, match=r"the labels yes, no, the held-out texts also maybe \(row 1 of"):
        load(train, f"data.test_path={save('other', ['maybe', 'no'], [0, 1])}")


def test_classes_in_another_form_of_the_same_number_are_the_same(tmp_path: Path) -> None:
    """Earlier versions named classes after floats, as in 1.0."""
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps({"text": f"t {n}", "label": n % 2}) + "\n" for n in range(6)))
    config = compose(["data=jsonl", f"data.path={path}"]).data
    labeled = load_all_texts(config, 0, ["1.0", "0"], every_split=False)
    assert list(labeled.rows["label"]) == [1, 0] * 3
    assert labeled.rows.features["label"].names == ["1.0", "0"]


def test_number_of_no_class_is_refused(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    table = pyarrow.table({"text": ["a", "b"], "label": [0, 7]}, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "own.parquet")
    with pytest.raises(DataError, match="row 2: column 'label' holds 7, but its 2 classes"):
        load(tmp_path / "own.parquet")


def test_hub_copy_has_the_same_rules(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["yes", "no"])})
    for split in ("train", "test"):
        columns = {"text": [f"{split} {n}" for n in range(9)], "label": [0, 1, -1] * 3}
        Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    loaded = load_data(compose(["data=hub", f"data.path={tmp_path}"]).data, 0)
    assert [item.reasons for item in loaded.left_out] == [{"hidden label (-1)": [3, 6, 9]}] * 2


def test_run_record_and_log_have_the_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "csv", with_gaps())
    overrides = ["experiment=smoke", "data=csv", f"data.path={path}", "data.text_column=note"]
    overrides += ["data.label_column=urgency", "partition=by_column", "partition.column=clinic"]
    overrides += ["federation.num_clients=3", "partition.min_partition_size=1"]
    config = compose([*overrides, "data.max_train_examples=null"])
    clear_data_cache()
    # A second run in the same process, with data from the cache, has its own record.
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            [record] = describe_run(config)["left_out"]
        assert record["num_rows"] == 24
        assert record["reasons"]["no text"] == {"count": 2, "rows": [5, 7]}
        assert json.loads(json.dumps(record)) == record
        assert "24 rows are left out: 2 with no text (rows 5, 7)" in caplog.text
        caplog.clear()
    held_out = set(load_held_out(config)["text"])
    trained = [text for number in range(3) for text in load_partition(config, number)["text"]]
    assert not held_out & set(trained)


def test_texts_to_predict_are_read_from_the_users_own_columns(tmp_path: Path) -> None:
    for name in FORMATS:
        path = write(tmp_path, name, with_gaps())
        texts, pairs, left_out = read_texts(path, TextLayout(("note", "text"), ("reply", "text_pair")))
        assert len(texts) == len(pairs or ()) == 21
        assert list(map(len, left_out.reasons.values())) == [2, 1]
        with pytest.raises(DataError, match="has no column 'body' or 'text'; it has note, reply"):
            read_texts(path, TextLayout(("body", "text")))


def test_splits_and_fingerprints_are_those_of_earlier_versions(tmp_path: Path) -> None:
    """A ledger belongs to the data with this fingerprint: a change would refuse every existing ledger."""
    words = ["a, b", 'say "x"', "line\nbreak", "ümläut", "plain"]
    columns = {
        "text": [f"{words[n % 5]} {n}" for n in range(30)],
        "other": [f"o{n}" for n in range(30)],
        "label": [n % 12 for n in range(30)],
    }
    for name in FORMATS:
        loaded = load(write(tmp_path, name, columns), "data.text_pair_column=other")
        assert data.fingerprint(loaded.splits["train"]).startswith("d416e617414cb38ac6e8fa4da1fa9b77")
        assert list(loaded.splits["train"]["text"])[:3] == ["line\nbreak 2", "plain 14", "plain 9"]
