"""A resumed run or sweep stays in its directory: overrides that name another one are refused."""

from pathlib import Path

import pytest

import fedsvd
from fedsvd.commands.arguments import normalize
from fedsvd.commands.evaluated_data import plan_evaluation
from fedsvd.commands.run_directory import prepare_run
from fedsvd.config.compose import compose, to_yaml
from fedsvd.config.quoting import path_override
from fedsvd.errors import ConfigError, ResumeError
from fedsvd.launch.resume import check_run_dir
from fedsvd.launch.sweep import plan_sweep
from fedsvd.runs.folder import RunFolder, write_json


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of a run with one round, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a ${b} it's"
    (folder / "checkpoints" / "round-0001").mkdir(parents=True)
    write_json(folder / "overrides.json", ["experiment=smoke"])
    return folder


@pytest.mark.parametrize("key", ["run_dir", "hydra.run.dir", "+hydra.run.dir"])
@pytest.mark.parametrize("value", ["b", "'b'", "runs/${now:%H}"])
def test_another_directory_is_refused(run: Path, key: str, value: str) -> None:
    with pytest.raises(ResumeError, match=f"{key.lstrip('+')} = .* is another directory than resume = .*Leave "):
        prepare_run(normalize([f"resume={run}", f"{key}={value}"]))
    assert list(run.parent.iterdir()) == [run]


def test_the_directory_of_the_run_is_accepted(run: Path) -> None:
    (run.parent / "link").symlink_to(run)
    same = [path_override("run_dir", run), path_override("hydra.run.dir", run.name), "run_dir=link/", "run_dir=null"]
    for override in same:
        assert prepare_run(normalize([f"resume={run}", override])).folder == run


def test_another_directory_is_refused_from_python(run: Path) -> None:
    with pytest.raises(ResumeError, match=r"run_dir = '.*other' is another directory than resume = "):
        fedsvd.train(f"resume={run}", run_dir="other")
    assert not Path("other").exists()


def test_a_classifier_of_an_earlier_version_that_names_a_column_of_answers_stays_usable(run: Path) -> None:
    answers = ["data=csv", "data.path=a.csv", "data.response_column=answer"]
    write_json(run / "overrides.json", ["experiment=smoke", *answers])
    own = compose(["experiment=smoke", *answers])
    (run / "config.yaml").write_text(to_yaml(own), encoding="utf-8")
    assert prepare_run(normalize([f"resume={run}"])).folder == run
    assert plan_evaluation(run, own, ["data.max_test_examples=5"]).config.data.response_column == "answer"
    with pytest.raises(ConfigError, match=r"data.response_column = answer has no effect"):
        plan_evaluation(run, own, answers)

    sweep = run.parent / "sweep"
    write_json(sweep / "sweep.json", {"words": ["experiment=smoke", *answers, "seed=0,1"]})
    assert plan_sweep(normalize([f"resume={sweep}"])).total == 2


def test_another_directory_than_that_of_the_sweep_is_refused(tmp_path: Path) -> None:
    plan_sweep(["experiment=smoke", "seed=0,1", path_override("hydra.sweep.dir", tmp_path / "first")])
    resume = normalize([f"resume={tmp_path / 'first'}"])

    with pytest.raises(ResumeError, match=r"hydra\.sweep\.dir = .* is another directory than resume = "):
        plan_sweep([*resume, path_override("hydra.sweep.dir", tmp_path / "second")])
    assert not (tmp_path / "second").exists()
    assert plan_sweep([*resume, path_override("hydra.sweep.dir", tmp_path / "first")]).total == 2


def test_a_run_that_flower_starts_needs_the_directory_to_resume_in(tmp_path: Path) -> None:
    resume = path_override("resume", tmp_path)
    with pytest.raises(ConfigError, match=r"needs run_dir, too: .* with all of its overrides, and with resume=RUN_DIR"):
        check_run_dir(compose(["experiment=smoke", resume]))
    # On a SuperLink, resume may name the directory on the machine that has submitted the run.
    check_run_dir(compose(["experiment=smoke", resume, path_override("run_dir", RunFolder(tmp_path).checkpoints)]))
    check_run_dir(compose(["experiment=smoke"]))
