"""scripts/demo on few texts: both runs, and the line without privacy in the report of the private one."""

from pathlib import Path

import demo_run
import pytest

import fedsvd
from fedsvd.config.compose import compose, read_config, to_yaml
from fedsvd.runs.folder import RunFolder, read_json, write_text

FEW = ["data.max_train_examples=240", "data.max_test_examples=60", "train.num_rounds=2", "train.head_rounds=1"]

RATINGS = ["model.task=regression", "data.min_abs_rating=0", "data.label_range=[-4,4]", "partition=iid"]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the run without privacy down to a few steps."""
    steps = {"train.local_steps=125": "train.local_steps=8"}
    monkeypatch.setattr(demo_run, "WITHOUT_PRIVACY", [steps.get(item, item) for item in demo_run.WITHOUT_PRIVACY])


@pytest.mark.slow
def test_demo_measures_the_line_without_privacy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    assert demo_run.run([*FEW, f"run_dir={folder}"]) == 0

    reference = read_config(folder / "config.yaml").reference_accuracy
    assert reference is not None
    assert 0.4 < reference < 1
    assert f"{reference:.1%}" in capsys.readouterr().out
    # The run that was reported is the private one, with the four clients of the demo.
    assert len(read_json(folder / "privacy.json")["clients"]) == 4
    assert (folder / "plots" / "accuracy.png").exists()


@pytest.mark.slow
def test_demo_of_another_task_measures_its_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "ratings"
    assert demo_run.run([*FEW, *RATINGS, f"run_dir={folder}"]) == 0

    reference = read_config(folder / "config.yaml").reference_accuracy
    assert reference is not None
    assert 0 < reference < 1
    assert f"Spearman without privacy, with all texts in one place: {reference:.3f}" in capsys.readouterr().out
    assert (folder / "plots" / "accuracy.png").exists()


@pytest.mark.parametrize(
    ("task", "key", "value"), [(RATINGS, "spearman", -0.2), (RATINGS, "spearman", None), ([], "accuracy", 0.99999)]
)
def test_a_metric_that_no_line_can_show_leaves_it_out(
    task: list[str],
    key: str,
    value: float | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(*overrides: str, run_dir: str) -> fedsvd.Run:
        write_text(RunFolder(Path(run_dir)).config, to_yaml(compose(overrides)))
        return fedsvd.Run(Path(run_dir), [{"loss": 0.5, key: value}], {})

    monkeypatch.setattr("fedsvd.train", train)
    assert demo_run.score_without_privacy(task) is None
    assert "no line in the plot" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [["--help"], ["-m", "seed=0,1"], ["resume=x"], ["reference_accuracy=0.8"]])
def test_nothing_runs_without_privacy_where_it_is_not_needed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsvd.train", lambda *given, **options: pytest.fail("a run without privacy was started"))
    assert demo_run.score_without_privacy(arguments) is None


def test_errors_are_those_of_the_private_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_run.run(["model.rank=-1", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "model.rank = -1" in capsys.readouterr().err
