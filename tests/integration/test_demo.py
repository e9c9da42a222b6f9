"""scripts/demo on few texts: both runs, and the line without privacy in the report of the private one."""

from pathlib import Path

import demo_run
import pytest

from fedsvd.config.compose import read_config
from fedsvd.runs.folder import read_json

FEW = ["data.max_train_examples=240", "data.max_test_examples=60"]


@pytest.mark.slow
def test_demo_measures_the_line_without_privacy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "demo"
    steps = {"train.local_steps=125": "train.local_steps=8"}
    monkeypatch.setattr(demo_run, "WITHOUT_PRIVACY", [steps.get(item, item) for item in demo_run.WITHOUT_PRIVACY])
    assert demo_run.run([*FEW, "train.num_rounds=2", "train.head_rounds=1", f"run_dir={folder}"]) == 0

    reference = read_config(folder / "config.yaml").reference_accuracy
    assert reference is not None
    assert 0.4 < reference < 1
    assert f"{reference:.1%}" in capsys.readouterr().out
    # The run that was reported is the private one, with the four clients of the demo.
    assert len(read_json(folder / "privacy.json")["clients"]) == 4
    assert (folder / "plots" / "accuracy.png").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["-m", "seed=0,1"], ["resume=x"], ["reference_accuracy=0.8"]])
def test_nothing_runs_without_privacy_where_it_is_not_needed(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsvd.train", lambda *given, **options: pytest.fail("a run without privacy was started"))
    assert demo_run.accuracy_without_privacy(arguments) is None


def test_errors_are_those_of_the_private_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo_run.run(["model.rank=-1", f"run_dir={tmp_path / 'run'}"]) == 2
    assert "model.rank = -1" in capsys.readouterr().err
