"""The columns of the data that ``fedsvd evaluate`` reads."""

import json
from pathlib import Path

import pytest

from fedsvd.commands.arguments import normalize
from fedsvd.commands.evaluated_data import plan_evaluation
from fedsvd.config import DataConfig
from fedsvd.config.compose import compose, to_yaml

CODES = "data:\n  text_column: note\n  label_column: codes\n  label_separator: '|'\n  separator: ;\n"
HUB = "# @package _global_\ndefaults:\n  - override /data: hub\ndata:\n  path: lab/notes\n  text_column: note\n"
OWN = ("note", "codes", "|", ";")
DEFAULT = ("text", "label", ";", ",")


def columns(data: DataConfig) -> tuple[str | None, ...]:
    return data.text_column, data.label_column, data.label_separator, data.separator


def start(folder: Path, *overrides: str) -> list[str]:
    """Write what a run with these overrides writes, with DIR/experiment as the user's own YAML files."""
    for name, text in {"mine": f"# @package _global_\n{CODES}", "hub": HUB}.items():
        (folder / "experiment").mkdir(exist_ok=True)
        (folder / "experiment" / f"{name}.yaml").write_text(text, encoding="utf-8")
    words = normalize(["--config-dir", str(folder), "model=tiny", "partition=iid", *overrides])
    (folder / "config.yaml").write_text(to_yaml(compose(words)), encoding="utf-8")
    (folder / "overrides.json").write_text(json.dumps(words), encoding="utf-8")
    return words


def evaluated(folder: Path, words: list[str], *overrides: str) -> DataConfig:
    plan = plan_evaluation(folder, compose(words), overrides)
    assert not plan.own_data
    return plan.config.data


@pytest.mark.parametrize(
    "target", [["data=csv", "data.path=b.csv"], ["data.path=b.csv"], ["data=hub", "data.path=lab/x"]], ids=" ".join
)
def test_columns_from_the_users_yaml_file_remain(target: list[str], tmp_path: Path) -> None:
    words = start(tmp_path, "data=csv", "data.path=a.csv", "model.task=multi_label_classification", "experiment=mine")

    assert columns(evaluated(tmp_path, words, *target)) == OWN
    assert evaluated(tmp_path, words, *target, "data.text_column=body").text_column == "body"


def test_a_run_that_stored_no_overrides_has_its_columns(tmp_path: Path) -> None:
    words = start(tmp_path, "data=csv", "data.path=a.csv", "data.text_column=note", "data.separator=;")
    (tmp_path / "overrides.json").unlink()

    assert columns(evaluated(tmp_path, words, "data=csv", "data.path=b.csv")) == ("note", "label", ";", ";")


def test_columns_that_come_with_a_dataset_stay_with_it(tmp_path: Path) -> None:
    csv = ["data=csv", "data.path=b.csv"]
    words = start(tmp_path, "data=glue/sst2")
    assert columns(evaluated(tmp_path, words, *csv)) == DEFAULT
    words = start(tmp_path, "data=glue/sst2", "data.label_column=idx")
    assert columns(evaluated(tmp_path, words, *csv)) == ("text", "idx", ";", ",")
    words = start(tmp_path, "experiment=hub")
    assert columns(evaluated(tmp_path, words, *csv)) == ("note", "label", ";", ",")
    assert evaluated(tmp_path, words, "data=glue/sst2").text_column == "sentence"
