"""Labeled texts for the evaluation of a finished model."""

from pathlib import Path

import pytest

from fedsvd.config.compose import compose
from fedsvd.data.labeled import load_all_texts


def test_a_limited_part_of_named_data_is_drawn_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("text,label\n" + "".join(f"text {n},{'ab'[n >= 30]}\n" for n in range(60)))
    config = compose(["data=csv", f"data.path={path}", "data.max_test_examples=20"]).data
    first, again, other = (load_all_texts(config, seed, ["a", "b"], every_split=False) for seed in (0, 0, 1))

    # The file is sorted by class.
    assert set(first.rows["label"]) == {0, 1}
    assert first.rows["text"] == again.rows["text"] != other.rows["text"]
    assert len(first.rows) == 20
    assert first.description == f"a random part of all rows of data.path = '{path}' (data=csv)"


@pytest.mark.slow
def test_embedded_data_are_labeled_for_the_task_of_the_model() -> None:
    config = compose(["data=movie_reviews", "partition=iid", "model.task=regression", "data.max_test_examples=50"]).data
    labeled = load_all_texts(config, 0, ["value"], every_split=False, task="regression")

    assert any(label != int(label) for label in labeled.rows["label"])
    assert len(labeled.rows) == 50
