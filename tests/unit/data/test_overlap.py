"""Held-out texts that are also training texts: files with the same texts are refused, single texts counted aloud."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import Dataset

from client.node_data import with_node_data
from fedsvd.config.compose import compose
from fedsvd.data import load
from fedsvd.data.loaders import load_data
from fedsvd.errors import DataError, NodeDataError

ROWS = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)]


def write(path: Path, rows: list[dict[str, str]] = ROWS) -> Path:
    dataset = Dataset.from_list(rows)
    dataset.to_csv(path) if path.suffix == ".csv" else dataset.save_to_disk(path)
    return path


def load_files(path: Path, test_path: Path, *overrides: str) -> int:
    name = "csv" if path.suffix == ".csv" else "arrow"
    data = [f"data={name}", f"data.path={path}", f"data.test_path={test_path}", "partition=iid", *overrides]
    return len(load(compose(data).data, seed=0)["test"])


def test_the_training_file_itself_and_its_copies_are_refused_as_held_out_texts(tmp_path: Path) -> None:
    path, reverse = write(tmp_path / "train.csv"), write(tmp_path / "reverse.csv", ROWS[::-1])
    (tmp_path / "link.csv").symlink_to(path)
    copy, directory = Path(shutil.copy(path, tmp_path / "copy.csv")), write(tmp_path / "directory")
    pairs = [(path, path), (path, tmp_path / "link.csv"), (path, copy), (path, reverse), (directory, directory)]
    for train, test in pairs:
        message = (
            rf"data.test_path = '{test}' holds the same 20 texts as data.path = '{train}': a model would be evaluated "
            r"on its training texts. Name other held-out texts, or none \(null\)"
        )
        with pytest.raises(DataError, match=message):
            load_files(train, test)


def test_the_same_texts_with_other_labels_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv")
    other = write(tmp_path / "other.csv", [{**row, "label": "a"} for row in ROWS])
    with pytest.raises(DataError, match="holds the same 20 texts"):
        load_files(path, other)


def test_a_fixed_set_of_prompts_may_have_other_answers_for_a_language_model(tmp_path: Path) -> None:
    answers = {name: [{**row, "answer": f"{name} {n}"} for n, row in enumerate(ROWS)] for name in ("first", "second")}
    first, second = (write(tmp_path / f"{name}.csv", rows) for name, rows in answers.items())
    data = compose(["model=tiny_llama", "data=csv", f"data.path={first}", "data.response_column=answer"]).data
    node = replace(data, name="node", labels=("a", "b"))
    for config in (data, node):
        loaded = load_data(replace(config, test_path=str(second)), seed=0, task="causal_lm")
        assert len(loaded.splits["test"]) == 20
        with pytest.raises(DataError, match="holds the same 20 texts"):
            load_data(replace(config, test_path=str(first)), seed=0, task="causal_lm")
        # A classifier reads no answers.
        with pytest.raises(DataError, match="holds the same 20 texts"):
            load_data(replace(config, test_path=str(second)), seed=0)


def test_single_texts_in_common_are_counted_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "train.csv")
    new = [{"text": f"new {n}", "label": "a"} for n in range(4)]
    with caplog.at_level(logging.WARNING):
        assert load_files(path, write(tmp_path / "new.csv", new)) == 4
        assert not caplog.records
        assert load_files(path, write(tmp_path / "mixed.csv", [*ROWS[:3], *new])) == 7
    assert f"3 of the 7 texts in data.test_path = '{tmp_path}/mixed.csv' are also training texts" in caplog.text


def test_pairs_are_compared_as_pairs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = ([{**row, "second": f"{word} {n}"} for n, row in enumerate(ROWS)] for word in ("one", "two"))
    with caplog.at_level(logging.WARNING):
        files = write(tmp_path / "first.csv", first), write(tmp_path / "second.csv", second)
        assert load_files(*files, "data.text_pair_column=second") == 20
    assert not caplog.records


def test_a_node_that_tests_on_its_training_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "site.csv")
    run = ["model=tiny", "data=node", "data.labels=[a,b]", "federation=remote", "federation.weighting=uniform"]
    config = with_node_data(compose(run), {"data-path": str(path), "test-path": str(path)})
    with pytest.raises(NodeDataError, match=r"test-path = .* holds the same 20 texts as data-path .* Set test-path to"):
        load(config.data, seed=0)
