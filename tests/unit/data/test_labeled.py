"""Labeled texts for the evaluation of a finished model."""

from pathlib import Path

import pytest

from fedsvd.config.compose import compose
from fedsvd.data.labeled import held_out_texts, load_all_texts
from fedsvd.data.loaders import load_data
from fedsvd.errors import DataError


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


def test_only_a_language_model_is_scored_on_rows_of_classes_that_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("text,label,answer\nOne?,math,1\nTwo?,other,2\nThree?,math,3\nFour?,other,4\n")
    own = ["data=csv", f"data.path={path}", "data.response_column=answer", "data.test_fraction=0.5"]
    data = compose(["model=tiny_llama", *own]).data

    assert len(load_all_texts(data, 0, ["math", "open"], every_split=False, task="causal_lm").rows) == 4
    with pytest.raises(DataError, match="the model knows math, open, the data have also other"):
        load_all_texts(data, 0, ["math", "open"], every_split=False)

    held_out = load_data(data, 0)
    assert len(held_out_texts(held_out, data, ["open", "closed"], task="causal_lm").rows) == 2
    with pytest.raises(DataError, match="but the model knows open, closed"):
        held_out_texts(held_out, data, ["open", "closed"], task="sequence_classification")


@pytest.mark.slow
def test_embedded_data_are_labeled_for_the_task_of_the_model() -> None:
    config = compose(["data=movie_reviews", "partition=iid", "model.task=regression", "data.max_test_examples=50"]).data
    labeled = load_all_texts(config, 0, ["value"], every_split=False, task="regression")

    assert any(label != int(label) for label in labeled.rows["label"])
    assert len(labeled.rows) == 50
