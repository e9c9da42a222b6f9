"""Labels of tasks other than classification: what is read, what is refused, and what a dataset stores."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from fedsvd.config.compose import compose
from fedsvd.data.batches import collate, encode
from fedsvd.data.loaders import LoadedData, load_data
from fedsvd.data.targets import count_labels, dataset_classes, used_classes, with_positions
from fedsvd.errors import DataError, NodeDataError
from fedsvd.models.loading import load_tokenizer

LABELS = [["b", "a"], [], ["c", "c"], "a; c", ["10"], None]


def write(path: Path, labels: list[object]) -> Path:
    path.write_text("".join(json.dumps({"text": f"text {i}", "label": x}) + "\n" for i, x in enumerate(labels)))
    return path


def load(path: Path, task: str, *overrides: str) -> LoadedData:
    overrides = (f"data={path.suffix[1:]}", f"data.path={path}", "partition=iid", f"model.task={task}", *overrides)
    config = compose(overrides)
    return load_data(config.data, 0, task=config.model.task)


def rows_of(loaded: LoadedData) -> dict[str, object]:
    return {row["text"]: row["label"] for split in loaded.splits.values() for row in split}


def test_several_classes_are_a_list_or_a_text_with_separators(tmp_path: Path) -> None:
    loaded = load(write(tmp_path / "own.jsonl", LABELS), "multi_label_classification", "data.test_fraction=0.4")
    train = loaded.splits["train"]

    assert dataset_classes(train) == ["a", "b", "c", "10"]
    assert rows_of(loaded) == {"text 0": [1, 0], "text 1": [], "text 2": [2], "text 3": [0, 2], "text 4": [3]}
    # A missing label is none, and a list without classes is one.
    assert loaded.left_out[0].reasons == {"no label": [6]}


def test_classes_in_csv_have_the_configured_separator(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + "".join(f"t{i},{x}\n" for i, x in enumerate(["x|y", "y", "x"])))
    loaded = load(path, "multi_label_classification", "data.label_separator='|'", "data.test_fraction=0.4")

    assert rows_of(loaded) == {"t0": [0, 1], "t1": [1], "t2": [0]}


def test_lists_of_zeros_and_ones_are_no_names_of_classes(tmp_path: Path) -> None:
    for zero, one in ((0, 1), (0.0, 1.0), (False, True)):
        path = write(tmp_path / "own.jsonl", [[zero, one, zero], None, [one, one, zero]])
        with pytest.raises(DataError, match="holds lists of 3 zeros and ones"):
            load(path, "multi_label_classification")


@pytest.mark.parametrize(
    "labels",
    [
        [[1, 0], [0, 1], [0, 1]],
        [[1.0, 0.0], None, [0.0, 1.0]],
        [[False, True], [True, False]],
        [[0, 1], [0, 1]],
        ["1;0", "0;1"],
        ["1; 0; 0", "0; 0; 0"],
        [["0", "1", "0"], ["1", "1", "0"]],
    ],
)
def test_indicators_of_classes_are_refused_in_any_form(labels: list[object], tmp_path: Path) -> None:
    """Read as names, they would give every text the classes 0 and 1."""
    with pytest.raises(DataError, match=r"holds lists of [23] zeros and ones"):
        load(write(tmp_path / "own.jsonl", labels * 3), "multi_label_classification")


@pytest.mark.parametrize(
    "labels",
    [
        [[0, 1], [1], [0]],
        [[1, 0], [], [0, 1]],
        [[1, 0], [2, 0], [0, 1]],
        [[0], [1], [1]],
        ["0;1", "0;1"],
        [["0", "1"], None, ["0", "1"]],
    ],
)
def test_numbers_of_classes_are_read(labels: list[object], tmp_path: Path) -> None:
    loaded = load(write(tmp_path / "own.jsonl", labels * 3), "multi_label_classification")
    expected = {str(name) for row in labels for name in (row.split(";") if isinstance(row, str) else row or [])}
    assert set(dataset_classes(loaded.splits["train"])) == expected


def test_numbered_classes_in_lists_keep_their_names(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": List(ClassLabel(names=["red", "blue", "green"]))})
    Dataset.from_dict({"text": ["a", "b", "c"], "label": [[1], [0, 1], []]}, features=features).save_to_disk(
        tmp_path / "own.arrow"
    )
    loaded = load(tmp_path / "own.arrow", "multi_label_classification", "data.test_fraction=0.4")

    assert dataset_classes(loaded.splits["train"]) == ["red", "blue", "green"]
    assert rows_of(loaded) == {"a": [1], "b": [0, 1], "c": []}


@pytest.mark.parametrize(
    ("task", "expected"), [("regression", [1.0, 2.0, 0.0]), ("multi_label_classification", [[1], [2], [0]])]
)
def test_hidden_labels_of_numbered_classes_are_left_out_for_every_task(
    task: str, expected: list[object], tmp_path: Path
) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["red", "blue", "green"])})
    columns = {"text": [f"text {n}" for n in range(5)], "label": [1, -1, 2, 0, -1]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "own.parquet")
    ranged = ["data.label_range=[0,2]"] if task == "regression" else []
    loaded = load(tmp_path / "own.parquet", task, "data.test_fraction=0.4", *ranged)

    assert rows_of(loaded) == dict(zip(("text 0", "text 2", "text 3"), expected, strict=True))
    assert loaded.left_out[0].reasons == {"hidden label (-1)": [2, 5]}


@pytest.mark.parametrize("file_format", ["parquet", "arrow"])
@pytest.mark.parametrize("names", [["only"], ["only", "other", "third"]])
def test_one_class_is_too_few_in_every_format(names: list[str], file_format: str, tmp_path: Path) -> None:
    path = tmp_path / f"own.{file_format}"
    for task, kind, labels in (
        ("sequence_classification", ClassLabel(names=names), [0] * 5 + [-1]),
        ("multi_label_classification", ClassLabel(names=names), [0] * 5 + [-1]),
        ("multi_label_classification", List(ClassLabel(names=names)), [[0]] * 5 + [[]]),
    ):
        features = Features({"text": Value("string"), "label": kind})
        dataset = Dataset.from_dict({"text": list("abcdef"), "label": labels}, features=features)
        dataset.to_parquet(path) if file_format == "parquet" else dataset.save_to_disk(path)
        with pytest.raises(DataError, match=r"have the labels only; expected at least two\. Check data"):
            load(path, task)


def test_rows_that_are_left_out_do_not_count_as_a_class(tmp_path: Path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["only", "other"])})
    columns = {"text": [*"abcde", ""], "label": [0, 0, 0, 0, 0, 1]}
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "own.parquet")
    with pytest.raises(DataError, match="have the labels only; expected at least two"):
        load(tmp_path / "own.parquet", "sequence_classification")


def test_texts_without_any_class_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the training texts have no label; expected at least two"):
        load(write(tmp_path / "own.jsonl", [[]] * 5), "multi_label_classification")


@pytest.mark.parametrize(
    ("task", "overrides", "label", "message"),
    [
        ("regression", [], "good", "row 2: column 'label' holds 'good': expected a number"),
        ("regression", [], True, "holds 'true': expected a number"),
        ("regression", ["data.label_range=[0,4]"], 4.5, r"holds 4.5, outside of data.label_range = [0, 4]"),
        ("regression", [], [1], "row 2: column 'label' holds a list"),
        # Python's own numbers in a text, which no file format has.
        ("regression", [], "1_000", "row 2: column 'label' holds '1_000': expected a number"),
        ("regression", [], "١٢", "holds '١٢': expected a number"),
        ("regression", [], "Infinity", "holds 'Infinity': expected a number"),
        ("multi_label_classification", [], {"a": 1}, "row 2: column 'label' holds an object"),
        ("multi_label_classification", [], ["a", None], "holds a list with an empty name"),
    ],
)
def test_other_labels_are_refused(task: str, overrides: list[str], label: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(write(tmp_path / "own.jsonl", [1, label, 3]), task, *overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "cell",
    [
        "['a', 'b']", "['a' 'b']", "['a[1]']", '["a"]', "['a', nan]", "[1, 2]", "[]", "[a, b]", "[b]", " [a; b] ",
        "('a', 'b')", "('b',)", '("a", None)', "(1, 2)", "(1,)", "()",
        "{'a', 'b'}", "{a,b}", "{}", "set()", "frozenset({'a'})", "array(['a', 'b'], dtype=object)",
    ],
)  # fmt: skip
def test_lists_printed_as_text_are_no_names_of_classes(cell: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load(write(tmp_path / "own.jsonl", ["a;b", cell, "c"]), "multi_label_classification")
    assert f"row 2: column 'label' holds the list {cell} as text: write its names with ';'" in str(caught.value)


@pytest.mark.parametrize("name", ["(other)", "('80s)", "(1)", "a (b, c)", "[a] b", "[a] or [b]", "settled (all)"])
def test_names_of_classes_may_have_brackets(name: str, tmp_path: Path) -> None:
    loaded = load(write(tmp_path / "own.jsonl", [f"{name};z"] * 5), "multi_label_classification")
    assert set(dataset_classes(loaded.splits["train"])) == {name, "z"}
    # In a list, names are never a list printed as text.
    loaded = load(write(tmp_path / "own.jsonl", [["[b]", "z"]] * 5), "multi_label_classification")
    assert set(dataset_classes(loaded.splits["train"])) == {"[b]", "z"}


def test_numbers_are_read_from_any_form_and_scaled_for_training(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", [1, " 2.5", 4.0, "+.5e1", 1])
    overrides = ["data.label_range=[1,5]", "data.test_fraction=0.4"]
    train = load(path, "regression", *overrides).splits["train"]
    config = compose(["model=tiny", "data=jsonl", "partition=iid", "model.task=regression", *overrides])
    tokenizer = load_tokenizer("embedded:tiny")

    examples = encode(train, config.data, config.model, tokenizer)
    assert collate(list(examples), tokenizer)["labels"].tolist() == [(label - 1) / 4 for label in train["label"]]
    assert (dataset_classes(train), used_classes(train), count_labels(train)) == (["value"], [], {"texts": 3})


def test_several_classes_become_indicators_and_move_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", [["a"], ["b"], ["a", "b"], [], ["b"]])
    train = load(path, "multi_label_classification", "data.test_fraction=0.2").splits["train"]
    config = compose(["model=tiny", "data=jsonl", "partition=iid", "model.task=multi_label_classification"])
    tokenizer = load_tokenizer("embedded:tiny")
    moved = with_positions(train, ["z", "b", "a"])

    assert [used_classes(dataset) for dataset in (train, moved)] == [["a", "b"], ["b", "a"]]
    assert count_labels(moved) == {"z": 0, **{name: count_labels(train)[name] for name in ("b", "a")}}
    for dataset, columns in ((train, {"a": 0, "b": 1}), (moved, {"a": 2, "b": 1})):
        labels = collate(list(encode(dataset, config.data, config.model, tokenizer)), tokenizer)["labels"]
        names = [{name for name, i in columns.items() if row[i]} for row in labels]
        classes = dataset_classes(dataset)
        assert names == [{classes[i] for i in row} for row in dataset["label"]]


def test_one_class_moves_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", ["a", "b", "c", "a", "b", "b"])
    train = load(path, "sequence_classification", "data.test_fraction=0.4").splits["train"]
    moved = with_positions(train, ["z", *reversed(dataset_classes(train))])

    before, after = (
        {row["text"]: dataset_classes(dataset)[row["label"]] for row in dataset} for dataset in (train, moved)
    )
    assert after == before
    assert set(after.values()) == {"a", "b", "c"}
    assert dataset_classes(moved) == ["z", "c", "b", "a"]


def test_a_nodes_own_file_has_the_classes_of_the_run_or_numbers(tmp_path: Path) -> None:
    def node(task: str, labels: list[object], *overrides: str) -> Dataset:
        path = write(tmp_path / "own.jsonl", labels)
        config = compose(["data=node", f"model.task={task}", *overrides])
        return load_data(replace(config.data, path=str(path)), 0, task=task).splits["train"]

    several = node("multi_label_classification", [["b"], ["a", "b"]], "data.labels=[b,a]")
    assert (dataset_classes(several), sorted(several["label"])) == (["b", "a"], [[0], [1, 0]])
    assert sorted(node("regression", [0.5, "-1"])["label"]) == [-1.0, 0.5]
    with pytest.raises(NodeDataError, match="labels that the run does not know: c in 1 of 2 rows"):
        node("multi_label_classification", [["b"], ["c", "b"]], "data.labels=[b,a]")
