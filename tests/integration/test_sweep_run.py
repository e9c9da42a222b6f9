"""Small sweeps: every launcher, a search, killing and resuming, and the report in a browser."""

from pathlib import Path

import pytest
from browser import browse
from forked import ForkedCommand
from loopback import wait_until
from PIL import Image
from tiny_runs import ONE_ROUND

from fedsvd.cli import main
from fedsvd.report.plots import BLUE, VERMILION
from fedsvd.runs.folder import read_json

GRID = [*ONE_ROUND, "method=fedsvd,ffa_lora", "privacy.target_epsilon=3,6", "tracking=tensorboard"]
pytestmark = pytest.mark.slow


def sweep(folder: Path, *overrides: str) -> int:
    return main(["train", "-m", *overrides, f"hydra.sweep.dir='{folder}'"])


def finish_times(folder: Path) -> dict[str, str]:
    """Return when each run finished."""
    return {path.parent.name: read_json(path)["finished_at"] for path in folder.glob("*/run.json")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    assert sweep(folder, *GRID) == 0
    return folder


def test_sweep_runs_all_jobs_and_skips_finished_ones_when_resumed(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = finish_times(swept)
    assert sorted(before) == [
        f"method={method},privacy.target_epsilon={epsilon}" for method in ("fedsvd", "ffa_lora") for epsilon in (3, 6)
    ]
    assert len(list(swept.glob("*/tensorboard/events*"))) == 4
    assert "round 1/1" in (swept / "method=fedsvd,privacy.target_epsilon=3" / "output.log").read_text("utf-8")
    capsys.readouterr()

    assert main(["train", "-m", f"resume={swept}"]) == 0

    output = capsys.readouterr().out
    assert "sweep of 4 runs, 4 already finished" in output
    assert "round 1" not in output
    assert finish_times(swept) == before


def test_killed_sweep_resumes_with_the_interrupted_run(tmp_path: Path) -> None:
    overrides = [*ONE_ROUND, "train.num_rounds=4", "privacy=none", "seed=0,1", f"hydra.sweep.dir='{tmp_path}'"]
    process = ForkedCommand(tmp_path, "train", "-m", *overrides)
    wait_until((tmp_path / "seed=1" / "checkpoints" / "round-000001").exists, 900, "the second run's checkpoint")
    process.kill()
    first = finish_times(tmp_path)
    assert first["seed=0"]
    assert first["seed=1"] is None, "the sweep finished before it could be killed"

    assert main(["train", "-m", f"resume={tmp_path}"]) == 0

    assert finish_times(tmp_path)["seed=0"] == first["seed=0"]
    assert finish_times(tmp_path)["seed=1"]
    assert "resuming after round" in (tmp_path / "seed=1" / "output.log").read_text("utf-8")


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [("joblib", ["hydra.launcher.n_jobs=2"]), ("submitit_local", ["hydra.launcher.timeout_min=10"])],
)
def test_other_launchers_run_the_sweep_in_other_processes(launcher: str, settings: list[str], tmp_path: Path) -> None:
    # Each run starts an interpreter.
    assert sweep(tmp_path, *ONE_ROUND, "seed=0", f"hydra/launcher={launcher}", *settings) == 0

    [record] = [read_json(path) for path in tmp_path.rglob("run.json")]
    assert record["state"] == "finished"


# Hydra's sweeper needs Optuna 2, which was written for an older SQLAlchemy than the one that Flower requires.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_search_runs_its_trials_and_resumes(tmp_path: Path) -> None:
    overrides = [*ONE_ROUND, "experiment=tune", "model=tiny", "train.batch_size=16", "hydra.sweeper.n_trials=2"]
    overrides = [override for override in overrides if override != "experiment=smoke"] + [
        "federation.num_clients=2",
        "partition=iid",
        "model.pooling_layer=2",
    ]
    assert sweep(tmp_path, *overrides) == 0
    before = finish_times(tmp_path)
    assert len(before) == 2
    assert all("train.learning_rate=" in name and "model.rank=" in name for name in before)

    assert main(["train", "-m", f"resume={tmp_path}", "hydra.sweeper.n_trials=3"]) == 0

    assert before.items() <= finish_times(tmp_path).items()
    assert len(finish_times(tmp_path)) == 3
    assert "best_params" in (tmp_path / "optimization_results.yaml").read_text("utf-8")


def test_sweep_report_opens_in_a_browser_and_prints(swept: Path, tmp_path: Path) -> None:
    assert main(["report", str(swept), "--to", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text("utf-8")
    assert "| fedsvd |" in report
    assert "4 runs were private" in report

    page, profile = (tmp_path / "report.html").as_uri(), tmp_path / "profile"
    browse(page, profile, "--window-size=1000,4000", f"--screenshot={tmp_path / 'page.png'}")

    with Image.open(tmp_path / "page.png") as image:
        assert image.size == (1000, 4000)
        colors = {color for count, color in image.convert("RGB").getcolors(image.size[0] * image.size[1]) if count > 50}
    # The plots contain the lines of both methods.
    assert {tuple(bytes.fromhex(color.removeprefix("#"))) for color in (BLUE, VERMILION)} <= colors
    browse(page, profile, f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
