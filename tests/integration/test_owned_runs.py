"""Runs through the command line that own their directories: new, resumed, swept, exported, and from any directory."""

import json
import os
from pathlib import Path

import pytest
from tiny_runs import ONE_ROUND

from fedsvd.cli import main
from fedsvd.config.compose import compose
from fedsvd.runs.folder import read_json, read_rows
from fedsvd.runs.ownership import owned

pytestmark = pytest.mark.slow

OPEN = [*ONE_ROUND, "privacy=none"]


def rounds(folder: Path) -> list[int]:
    return [row["server_round"] for row in read_rows(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def strange_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose directory has a name that Hydra would not parse, started with relative paths."""
    root = tmp_path_factory.mktemp("own")
    data = root / "files" / "texts.csv"
    data.parent.mkdir()
    lines = [f"case {i}: the stay was {word},{word}" for i in range(40) for word in ("fine", "poor")]
    data.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    earlier = Path.cwd()
    os.chdir(root)
    try:
        folder = root / "sw" / "model.rank=2,seed=0 Übung [x] it's"
        name = str(folder.relative_to(root)).replace("'", "\\'")
        overrides = ["data=csv", "data.path=files/texts.csv", "train.num_rounds=1", "plots=false", "partition=iid"]
        assert main(["train", "experiment=smoke", *overrides, "privacy=none", f"hydra.run.dir='{name}'"]) == 0
    finally:
        os.chdir(earlier)
    return folder


def test_paths_are_stored_absolute(strange_run: Path) -> None:
    path = str(strange_run.parents[1] / "files" / "texts.csv")
    assert compose(json.loads((strange_run / "overrides.json").read_text())).data.path == path
    assert path in (strange_run / "config.yaml").read_text()


def test_an_earlier_run_is_resumed_but_not_overwritten(
    strange_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (strange_run / "metrics.jsonl").read_bytes()
    name = str(strange_run).replace("'", "\\'")
    assert main(["train", *OPEN, f"hydra.run.dir='{name}'"]) == 2
    assert "holds an earlier run (metrics.jsonl)" in capsys.readouterr().err
    assert (strange_run / "metrics.jsonl").read_bytes() == before

    monkeypatch.chdir(strange_run.parent)
    assert main(["train", f"resume={strange_run.name}", "train.num_rounds=2"]) == 0
    monkeypatch.chdir("/")
    assert main(["train", f"resume={strange_run}", "train.num_rounds=3"]) == 0
    assert rounds(strange_run) == [0, 1, 2, 3]


def test_the_model_is_used_from_any_directory(
    strange_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(strange_run), "--text", "fine", "--json"]) == 0
    assert main(["evaluate", str(strange_run)]) == 0
    assert main(["export", str(strange_run), "--to", "export", "--merge"]) == 0
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "texts.csv" in card
    assert str(strange_run.parents[1]) not in card
    capsys.readouterr()


def test_an_exported_adapter_says_what_to_set_for_its_base_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *OPEN, "model.pooling=stock", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    capsys.readouterr()
    assert main(["export", str(tmp_path / "run"), "--to", str(tmp_path / "export")]) == 0

    for text in (capsys.readouterr().out, (tmp_path / "export" / "README.md").read_text(encoding="utf-8")):
        assert "set `base_model_name_or_path` in `adapter_config.json`" in text
        assert "--merge" in text


def test_a_run_in_progress_cannot_be_resumed(strange_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with owned(strange_run):
        assert main(["train", f"resume={strange_run}"]) == 1
    assert "another process is running this run" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    (tmp_path / "overrides.json").write_text(json.dumps(OPEN), encoding="utf-8")
    assert main(["train", f"resume={tmp_path}"]) == 0
    assert rounds(tmp_path) == [0, 1]


def test_run_dir_is_the_run_directory(tmp_path: Path) -> None:
    assert main(["train", *OPEN, f"run_dir={tmp_path / 'here'}"]) == 0
    assert rounds(tmp_path / "here") == [0, 1]
    assert main(["train", *OPEN, f"run_dir={tmp_path / 'here'}"]) == 2
    assert main(["train", "-m", *OPEN, f"run_dir={tmp_path / 'here'}", "seed=0,1"]) == 2


def test_a_resume_that_the_budget_cannot_hold_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", *ONE_ROUND, f"hydra.run.dir={run}"]) == 0
    files = ("run.json", "metrics.jsonl", "overrides.json", "config.yaml", "privacy.json")
    before = [(run / name).read_bytes() for name in files]
    capsys.readouterr()

    assert main(["train", f"resume={run}", "train.num_rounds=3"]) == 1

    printed = capsys.readouterr()
    assert "no client's budget holds one of the 2 remaining rounds" in printed.err
    assert "round 2" not in printed.out
    assert [(run / name).read_bytes() for name in files] == before
    # A larger budget holds the first of them.
    assert main(["train", f"resume={run}", "train.num_rounds=3", "privacy.max_epsilon=8"]) == 0
    assert "warning: client" in capsys.readouterr().out


def test_own_yaml_files_are_used_resumed_and_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - smoke\n  - _self_\ndata:\n  max_train_examples: 61\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    mine = ["-cd", "conf", "experiment=mine", "plots=false", "train.num_rounds=1", "data.max_test_examples=20"]
    mine += ["privacy=none"]

    assert main(["train", *mine, "hydra.run.dir=run"]) == 0
    assert "max_train_examples: 61" in (tmp_path / "run" / "config.yaml").read_text()
    assert main(["privacy", "plan", *mine[:-1]]) == 0
    assert main(["train", *mine, "--cfg", "job"]) == 0
    monkeypatch.chdir("/")
    assert main(["train", f"resume={tmp_path / 'run'}", "train.num_rounds=2"]) == 0
    assert rounds(tmp_path / "run") == [0, 1, 2]

    monkeypatch.chdir(tmp_path)
    # A fixed boolean and a fixed path are among what a resumed sweep compares.
    sweep = ["train", "-m", *mine, "plots=false", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert main(sweep) == 0
    monkeypatch.chdir("/")
    assert main(["train", "-m", f"resume={tmp_path / 'sweep'}", "seed=0,1,2"]) == 0
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/run.json")) == ["seed=0", "seed=1", "seed=2"]
    assert {read_json(path)["state"] for path in tmp_path.glob("sweep/*/run.json")} == {"finished"}


@pytest.mark.parametrize("flag", ["-cp", "--config-name=other"])
def test_another_primary_configuration_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", flag, "x"]) == 2
    assert "--config-dir DIR" in capsys.readouterr().err
