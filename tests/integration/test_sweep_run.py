"""Real sweeps, small: every launcher, a search, one that is killed and goes on, and the report on them in a browser."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import wait_until
from PIL import Image

from fedsvd.cli import main
from fedsvd.report.plots import BLUE, VERMILION
from fedsvd.runs.folder import read_json

TINY = [
    "experiment=smoke", "train.num_rounds=1", "data.max_train_examples=60", "data.max_test_examples=20",
    "privacy.accountant=rdp",
]  # fmt: skip
GRID = [*TINY, "method=fedsvd,ffa_lora", "privacy.target_epsilon=3,6", "tracking=tensorboard"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


def sweep(folder: Path, *words: str) -> int:
    return main(["train", "-m", *words, f"hydra.sweep.dir='{folder}'"])


def records(folder: Path) -> dict[str, str]:
    """When each run ended."""
    return {path.parent.name: read_json(path)["finished_at"] for path in folder.glob("*/run.json")}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    assert sweep(folder, *GRID) == 0
    return folder


def test_a_sweep_runs_all_and_is_recognised_when_it_is_run_again(
    swept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(swept)
    assert sorted(before) == [
        f"method={method},privacy.target_epsilon={epsilon}" for method in ("fedsvd", "ffa_lora") for epsilon in (3, 6)
    ]
    assert len(list(swept.glob("*/tensorboard/events*"))) == 4
    assert "round 1/1" in (swept / "method=fedsvd,privacy.target_epsilon=3" / "output.log").read_text("utf-8")
    capsys.readouterr()

    assert main(["train", "-m", f"resume={swept}"]) == 0

    said = capsys.readouterr().out
    assert "sweep of 4 runs, 4 already finished" in said
    assert "round 1" not in said
    assert records(swept) == before


def test_a_killed_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    words = [*TINY, "train.num_rounds=6", "privacy=none", "seed=0,1", f"hydra.sweep.dir='{tmp_path}'"]
    process = subprocess.Popen([sys.executable, "-m", "fedsvd.cli", "train", "-m", *words], stdout=subprocess.DEVNULL)
    wait_until((tmp_path / "seed=1" / "checkpoints" / "round-000002").exists, 900, "the second run's checkpoint")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = records(tmp_path)
    assert first["seed=0"]
    assert first["seed=1"] is None, "the sweep was over before it could be killed"

    assert main(["train", "-m", f"resume={tmp_path}"]) == 0

    assert records(tmp_path)["seed=0"] == first["seed=0"]
    assert records(tmp_path)["seed=1"]
    assert "resuming after round" in (tmp_path / "seed=1" / "output.log").read_text("utf-8")


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [("joblib", ["hydra.launcher.n_jobs=2"]), ("submitit_local", ["hydra.launcher.timeout_min=10"])],
)
def test_other_launchers_run_the_same_in_other_processes(launcher: str, settings: list[str], tmp_path: Path) -> None:
    assert sweep(tmp_path, *TINY, "seed=0,1", f"hydra/launcher={launcher}", *settings) == 0

    assert sorted(records(tmp_path)) == ["seed=0", "seed=1"]
    assert all(records(tmp_path).values())


# Optuna 2, which Hydra's sweeper needs, is written for a SQLAlchemy before the one that Flower brings.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_search_tries_what_it_is_given_and_finds_its_trials_again(tmp_path: Path) -> None:
    words = [*TINY, "experiment=tune", "model=tiny", "train.batch_size=16", "hydra.sweeper.n_trials=2"]
    words = [word for word in words if word != "experiment=smoke"] + ["federation.num_clients=2", "partition=iid"]
    assert sweep(tmp_path, *words) == 0
    before = records(tmp_path)
    assert len(before) == 2
    assert all("train.learning_rate=" in name and "model.rank=" in name for name in before)

    assert main(["train", "-m", f"resume={tmp_path}", "hydra.sweeper.n_trials=3"]) == 0

    assert before.items() <= records(tmp_path).items()
    assert len(records(tmp_path)) == 3
    assert "best_params" in (tmp_path / "optimization_results.yaml").read_text("utf-8")


def browse(page: Path, *switches: str) -> None:
    """Open a page in a headless browser with a profile of its own, which reaches nothing."""
    if CHROMIUM is None:
        reason = "there is no chromium on the PATH; on Debian: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    quiet = ["disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-sync"]
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-component-update", *(f"--{name}" for name in quiet),
         f"--user-data-dir={page.parent / 'profile'}", "--hide-scrollbars", *switches, page.as_uri()],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_report_on_a_sweep_opens_in_a_browser_and_prints(swept: Path, tmp_path: Path) -> None:
    assert main(["report", str(swept), "--to", str(tmp_path)]) == 0
    told = (tmp_path / "report.md").read_text("utf-8")
    assert "| fedsvd |" in told
    assert "4 runs were private" in told

    browse(tmp_path / "report.html", "--window-size=1000,4000", f"--screenshot={tmp_path / 'page.png'}")

    with Image.open(tmp_path / "page.png") as image:
        assert image.size == (1000, 4000)
        seen = {colour for count, colour in image.convert("RGB").getcolors(image.size[0] * image.size[1]) if count > 50}
    # The lines of both methods are there: the pictures were drawn.
    assert {tuple(bytes.fromhex(colour.removeprefix("#"))) for colour in (BLUE, VERMILION)} <= seen
    browse(tmp_path / "report.html", f"--print-to-pdf={tmp_path / 'page.pdf'}")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
