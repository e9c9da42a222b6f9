"""Paths that are stored absolute, and directories of a user's own YAML files."""

from pathlib import Path

import pytest

from fedsvd.commands.arguments import normalize
from fedsvd.config.compose import check_overrides, compose, hydra_settings
from fedsvd.config.paths import absolute_paths
from fedsvd.config.search_path import config_dirs, merge_search_paths
from fedsvd.errors import ConfigError

FILES = ["data=csv", "data.path=in/train.csv", "data.test_path=in/test.csv"]


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def absolute(*overrides: str, swept: tuple[str, ...] = ()) -> list[str]:
    return absolute_paths(overrides, compose(overrides), swept=swept)


def test_relative_paths_become_absolute(tmp_path: Path) -> None:
    (tmp_path / "my model").mkdir()
    overrides = [*FILES, "model.source='my model'", "privacy.ledger_dir=led", "model.public_text=public.txt"]
    config = compose(absolute(*overrides))

    assert config.data.path == str(tmp_path / "in" / "train.csv")
    assert config.data.test_path == str(tmp_path / "in" / "test.csv")
    assert config.model.source == str(tmp_path / "my model")
    assert config.model.public_text == str(tmp_path / "public.txt")
    assert config.privacy.ledger_dir == str(tmp_path / "led")
    assert absolute(*absolute(*overrides)) == absolute(*overrides)


def test_ids_and_paths_of_other_machines_are_unchanged() -> None:
    for overrides in (
        ["data=hub", "data.path=owner/name", "model.source=owner/model", "data.label_column=label"],
        ["experiment=smoke"],
        ["federation=remote", "federation.root_certificates=null", *FILES, "privacy.ledger_dir=led"],
    ):
        assert absolute(*overrides) == overrides


def test_the_certificate_is_found_from_any_directory(tmp_path: Path) -> None:
    config = compose(absolute("federation=remote"))
    assert config.federation.root_certificates == str(tmp_path / "certs" / "ca.crt")


def test_swept_paths_are_unchanged(tmp_path: Path) -> None:
    changed = absolute(*FILES, swept=("data.path",))
    assert "data.path=in/train.csv" in changed
    assert f"data.test_path='{tmp_path}/in/test.csv'" in changed


@pytest.fixture
def own_files(tmp_path: Path) -> Path:
    folder = tmp_path / "my files" / "experiment"
    folder.mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - smoke\n  - _self_\ntrain:\n  num_rounds: 7\n"
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return folder.parent


@pytest.mark.parametrize("form", [["-cd", "my files"], ["--config-dir", "my files"], ["--config-dir=my files"]])
def test_a_config_dir_is_an_override_that_both_apps_read(own_files: Path, form: list[str]) -> None:
    overrides = normalize([*form, "experiment=mine", "seed=3"])

    config = compose(overrides)
    assert (config.train.num_rounds, config.seed) == (7, 3)
    assert config_dirs(overrides) == [own_files]
    check_overrides([*overrides, "experiment=mine,smoke"], multirun=True)
    assert hydra_settings(overrides).train.num_rounds == 7
    with pytest.raises(ConfigError, match="experiment = 'mine'"):
        compose(["experiment=mine"])


def test_config_dirs_are_merged(own_files: Path, tmp_path: Path) -> None:
    merged = merge_search_paths(["seed=1", "hydra.searchpath=[file://my files,pkg://mine]", *normalize(["-cd", "."])])
    assert merged == [f"hydra.searchpath=['file://{own_files}','pkg://mine','file://{tmp_path}']", "seed=1"]


def test_a_missing_config_dir_is_reported() -> None:
    with pytest.raises(ConfigError, match="--config-dir nowhere is not a directory"):
        normalize(["-cd", "nowhere"])
