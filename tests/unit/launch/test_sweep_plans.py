"""The directory of each run of a sweep, and the options that cannot be swept."""

from pathlib import Path

import pytest

from fedsvd.cli import main
from fedsvd.config.run_names import run_name
from fedsvd.errors import ConfigError
from fedsvd.launch import sweep
from fedsvd.launch.sweep import plan_sweep
from fedsvd.runs.folder import write_json

TINY = ["experiment=smoke", "model=tiny", "data=csv", "partition=iid"]


def run_sweep(folder: Path, patch: pytest.MonkeyPatch, *overrides: str) -> tuple[int, list[Path]]:
    """Start a sweep whose runs fail at once; return its exit status and the directories of its runs."""
    folders: list[Path] = []

    def fail(_: list[str], run: Path) -> float:
        write_json(run / "run.json", {"state": "failed", "reason": "the file is missing"})
        folders.append(run)
        return 0.5

    patch.setattr(sweep, "_run", fail)
    return main(["train", "-m", *TINY, *overrides, f"hydra.sweep.dir='{folder}'"]), folders


@pytest.mark.parametrize(
    "swept",
    [
        "data.path=../../../x.csv,../../../y.csv,/a/b/c.csv",
        "data.path=a,b/../../../c,d/e",
        f"data.path={'a' * 250}1,{'a' * 250}2,'{'ü' * 150}'",
        f"data.path={'a/' * 200}1,{'a/' * 200}2,x",
    ],
    ids=lambda swept: swept[:25],
)
def test_every_run_of_a_sweep_is_in_its_directory(swept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, folders = run_sweep(tmp_path / "a" / "b" / "sweep", monkeypatch, swept)

    assert [path.parent for path in folders] == [tmp_path / "a" / "b" / "sweep"] * 3
    assert len(set(folders)) == 3
    # The runs have failed.
    assert status == 1


def test_ordinary_values_are_the_name_and_the_same_values_have_the_same_name(tmp_path: Path) -> None:
    ordinary = "data.path='my file.csv',method=fedsvd,seed=0"
    assert run_name(ordinary, str(tmp_path)) == ordinary
    assert run_name("a" * 255, str(tmp_path)) == "a" * 255

    path = run_name("data.path=../x.csv,seed=0", str(tmp_path))
    assert path.startswith("data.path=.._x.csv,seed=0-")
    assert path == run_name("data.path=../x.csv,seed=0", "elsewhere")
    assert path != run_name("data.path=.._x.csv,seed=0", str(tmp_path))


def test_a_run_of_an_earlier_version_keeps_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    (folder / "data.path=..").mkdir(parents=True)
    for earlier in (folder / "model.source=org" / "name", tmp_path / "x"):
        write_json(earlier / "run.json", {"state": "finished"})

    assert run_name("model.source=org/name", str(folder)) == "model.source=org/name"
    assert "/" not in run_name("model.source=org/other", str(folder))
    # It was outside of its sweep.
    assert (folder / "data.path=../../../x" / "run.json").exists()
    assert "/" not in run_name("data.path=../../../x", str(folder))


def test_an_experiment_with_a_sweep_of_its_own_is_not_swept(tmp_path: Path) -> None:
    for experiments in ("epsilon_sweep,smoke", "smoke,epsilon_sweep", "epsilon_sweep,tune"):
        with pytest.raises(ConfigError, match=r"experiment=epsilon_sweep cannot be one of .* it sets hydra.sweeper"):
            plan_sweep([f"experiment={experiments}", f"hydra.sweep.dir='{tmp_path}'"])
    assert list(tmp_path.iterdir()) == []


def test_experiments_without_sweeps_are_swept(tmp_path: Path) -> None:
    plan = plan_sweep(["experiment=smoke,demo", "seed=0,1", "model=tiny", f"hydra.sweep.dir='{tmp_path}'"])
    assert plan.total == 4
