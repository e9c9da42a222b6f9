"""What ``fedsvd evaluate`` scores: keys that belong to the model are refused, and labels are in its units."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from run_directories import write_run

from fedsvd.commands.evaluated_data import EvaluationPlan, load_labeled, plan_evaluation
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, DataError
from fedsvd.runs.folder import RunFolder
from fedsvd.trained.run import TrainedRun

RATED = ("model.task=regression", "data.label_column=stars", "data.label_range=[1,5]", "partition=iid")


def write_file(path: Path, *stars: float) -> str:
    rows = [{"text": f"text {number}", "stars": value} for number, value in enumerate(stars)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return f"data.path={path}"


def plan(folder: Path, settings: Sequence[str], *overrides: str) -> EvaluationPlan:
    root = folder / "run"
    if not root.exists():
        write_run(root, *settings)
    return plan_evaluation(root, compose(["experiment=smoke", *settings]), overrides)


@pytest.mark.parametrize("own_range", ["data.label_range=[1,5]", "data.label_range=null"])
def test_the_range_of_the_labels_belongs_to_the_model(own_range: str, tmp_path: Path) -> None:
    settings = ("data=jsonl", write_file(tmp_path / "own.jsonl", 1, 5), *RATED[:2], own_range, RATED[3])
    other = write_file(tmp_path / "other.jsonl", 1, 5)
    trained = "[1.0, 5.0]" if own_range == RATED[2] else "None"

    with pytest.raises(ConfigError) as error:
        plan(tmp_path, settings, other, "data.label_range=[0,10]")
    assert "data.label_range = [0.0, 10.0] is not possible: it belongs to the model" in str(error.value)
    assert f"trained with {trained}. Leave it out." in str(error.value)
    with pytest.raises(ConfigError, match=r"data\.label_range=\[0,10\] .*belongs to the model"):
        plan(tmp_path, settings, "data.label_range=[0,10]")
    # The run's own range, and that of a run without one.
    assert plan(tmp_path, settings, other, own_range).config.data.label_range == (
        (1.0, 5.0) if own_range == RATED[2] else None
    )


def test_a_run_with_a_range_is_not_evaluated_without_one(tmp_path: Path) -> None:
    settings = ("data=jsonl", write_file(tmp_path / "own.jsonl", 1, 5), *RATED)
    with pytest.raises(ConfigError, match=r"data\.label_range = None is not possible: it belongs to the model"):
        plan(tmp_path, settings, write_file(tmp_path / "other.jsonl", 1, 5), "data.label_range=null")


def test_labels_outside_of_the_range_need_another_model(tmp_path: Path) -> None:
    settings = ("data=jsonl", write_file(tmp_path / "own.jsonl", 1, 5), *RATED)
    chosen = plan(tmp_path, settings, write_file(tmp_path / "other.jsonl", 1, 7))
    folder = RunFolder(tmp_path / "run")
    run = TrainedRun(folder, compose(["experiment=smoke", *settings]), ("value",), folder.adapter)

    with pytest.raises(DataError, match=r"holds 7, outside of .* correct it, or train with a range that contains it"):
        load_labeled(chosen, run, every_split=False)


@pytest.mark.parametrize(
    ("settings", "key", "override"),
    [
        (("data=node", "data.labels=[no,yes]", "partition=iid"), "test_path", "data.labels=[yes,no]"),
        (("data=csv", "data.path=own.csv"), "path", "data.class_descriptions={no: [Bad.], yes: [Good.]}"),
    ],
)
def test_classes_and_their_descriptions_belong_to_the_model(
    settings: Sequence[str], key: str, override: str, tmp_path: Path
) -> None:
    path = tmp_path / "other.csv"
    path.write_text("text,label\na,yes\nb,no\n")
    with pytest.raises(ConfigError, match=r"is not possible: it belongs to the model, which was trained with"):
        plan(tmp_path, settings, f"data.{key}={path}", override)
