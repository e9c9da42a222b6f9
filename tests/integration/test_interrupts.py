"""Real processes: interrupted with SIGINT, with a closed standard output, without Unicode, and on a full disk."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from factors import weight_updates
from forked import ForkedCommand
from loopback import wait_until
from tiny_runs import TINY

from fedsvd.cli import main
from fedsvd.runs.folder import read_json

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
OPEN = [*TINY, "privacy=none"]
LONG = [*OPEN, "train.num_rounds=2000"]
COMMANDS = [
    ["train", *LONG], ["train", "-m", *LONG, "seed=0,1"], ["compare", "experiment=smoke", "run_dir=cmp"],
    ["audit", "experiment=smoke", "model.rank=32"], ["predict", "RUN", "--text", "x"], ["evaluate", "RUN"],
    ["export", "RUN", "--to", "export"], ["report", "RUN"], ["doctor"], ["privacy", "plan", "experiment=smoke"],
]  # fmt: skip


Process = subprocess.Popen[str] | ForkedCommand


def start(folder: Path, *arguments: str, **options: object) -> subprocess.Popen[str]:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "fedsvd.cli", *arguments]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, **options}
    # A background job of a shell ignores SIGINT, and so would its children.
    settings.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    # A process group, which a terminal interrupts as a whole.
    return subprocess.Popen(command, cwd=folder, text=True, start_new_session=True, **settings)  # type: ignore[call-overload,no-any-return]


def interrupt(process: Process) -> tuple[str, str]:
    """Interrupt a process group; return its output, and the second of the two lines on standard error."""
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 130, errors
    lines = errors.strip().splitlines()
    assert len(lines) == 2, errors
    assert lines[0].startswith("interrupted: ")
    return output, lines[1]


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    process = ForkedCommand(folder, "train", *OPEN, "train.num_rounds=1", "run_dir=run")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder / "run"


# While modules are imported, in a process of their own, and at work.
@pytest.mark.parametrize(
    ("delay", "arguments"),
    [(0.7, COMMANDS[0]), (0.7, ["doctor"]), *((0.2, arguments) for arguments in COMMANDS)],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else str(value),
)
def test_every_command_ends_in_two_lines(
    arguments: list[str], delay: float, tmp_path: Path, finished_run: Path
) -> None:
    arguments = [str(finished_run) if argument == "RUN" else argument for argument in arguments]
    start_command = start if delay == 0.7 else ForkedCommand
    # Longer if the interpreter had not started the command yet.
    for factor in (1, 2, 4, 8):
        process = start_command(tmp_path, *arguments)
        time.sleep(delay * factor)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=240)
        if "interrupted: " in errors or "in _run" in errors or output:
            break
    if process.returncode == 0:
        pytest.skip("the command had written its result already")

    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    # Before them, predict says what guarantee covers the predictions, and evaluate what it scores.
    *notes, first, second = errors.strip().splitlines()
    assert all(note.startswith(("privacy: ", "scoring ")) for note in notes)
    assert first.startswith("interrupted: ")
    assert "fedsvd" in second


def paste(folder: Path, remedy: str, *more: str) -> None:
    """Run the printed command, as a shell reads it, in another directory."""
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "fedsvd"
    script.write_text("#!/bin/sh\nprintf '%s\\0' \"$@\"\n", encoding="utf-8")
    script.chmod(0o755)
    line = " ".join([remedy[remedy.index("fedsvd ") :], *more])
    environment = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}"}
    shell = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    process = ForkedCommand(folder, *shell.stdout.rstrip("\0").split("\0"))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


@pytest.mark.parametrize("federation", ["local", "simulation"])
def test_an_interrupted_run_continues_with_the_printed_command(federation: str, tmp_path: Path) -> None:
    folder = tmp_path / "a=b, it's [x] ü"
    name = str(folder).replace("'", "\\'")
    overrides = [*LONG, "train.head=private", f"federation={federation}", f"hydra.run.dir='{name}'"]
    process = ForkedCommand(tmp_path, "train", *overrides)
    wait_until((folder / "checkpoints" / "round-000002").exists, 300, "the second checkpoint")

    _, remedy = interrupt(process)

    record = read_json(folder / "run.json")
    assert (record["state"], record["reason"]) == ("interrupted", "interrupted by the user")
    assert "resume=" in remedy
    rounds = 1 + max(int(path.name.removeprefix("round-")) for path in (folder / "checkpoints").glob("round-*"))
    # One worker process of Ray for all clients.
    more = [f"federation.client_num_cpus={os.cpu_count()}"] if federation == "simulation" else []
    paste(tmp_path / "elsewhere", remedy, f"train.num_rounds={rounds}", *more)
    assert read_json(folder / "run.json")["state"] == "finished"

    # The same model as without an interruption, on either engine.
    whole = tmp_path / "whole"
    assert main(["train", *OPEN, "train.head=private", f"train.num_rounds={rounds}", f"run_dir={whole}"]) == 0
    updates, expected = weight_updates(folder), weight_updates(whole)
    assert updates.keys() == expected.keys()
    for key, tensor in expected.items():
        # Relative to each update, since those of some sites are tiny; one round more or less changes a third.
        assert (updates[key] - tensor).abs().max() < 1e-3 * tensor.abs().max()


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]])
def test_an_interrupted_sweep_continues_with_the_printed_command(launcher: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "a sweep"
    overrides = [*OPEN, "train.num_rounds=15", "seed=0,1", *launcher, f"hydra.sweep.dir='{folder}'"]
    # The processes of joblib start from an interpreter of their own.
    start_command = start if launcher else ForkedCommand
    process = start_command(tmp_path, "train", "-m", *overrides)
    wait_until(lambda: any(folder.glob("*/checkpoints/round-000001")), 300, "a checkpoint")

    _, remedy = interrupt(process)

    assert "finished" not in {read_json(path)["state"] for path in folder.glob("*/run.json")}
    if launcher:
        assert f"'resume={folder}'" in remedy
        return
    paste(tmp_path / "elsewhere", remedy)
    assert [read_json(path)["state"] for path in folder.glob("*/run.json")] == ["finished"] * 2


def test_an_interrupted_comparison_keeps_its_runs(tmp_path: Path) -> None:
    chosen = [
        "compare.only_contenders=[fedsvd]", "compare.only_tasks=[movies]", "compare.epsilons=[0]",
        "compare.without_privacy={all:['train.head_rounds=0']}",
    ]  # fmt: skip
    process = ForkedCommand(tmp_path, "compare", *TINY, *chosen, "compare.tuning_epsilons=[0]", "run_dir=cmp")
    results = tmp_path / "cmp" / "results.jsonl"
    wait_until(lambda: results.exists() and results.stat().st_size > 0, 300, "the first run")

    _, remedy = interrupt(process)

    assert "compare.only_contenders=" in remedy
    assert json.loads(results.read_text().splitlines()[0])["phase"] == "tuning"


def test_runs_of_one_second_have_directories_of_their_own(tmp_path: Path) -> None:
    processes = [ForkedCommand(tmp_path, "train", *OPEN, "train.num_rounds=1") for _ in range(2)]
    for process in processes:
        assert process.communicate(timeout=300)[0]
        assert process.returncode == 0
    records = [read_json(path) for path in tmp_path.glob("runs/*/*/run.json")]
    assert [record["state"] for record in records] == ["finished"] * 2


def test_a_closed_standard_output_does_not_end_training(tmp_path: Path) -> None:
    process = start(tmp_path, "train", *OPEN, "hydra.run.dir=run")
    assert process.stdout is not None
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(300) == 0
    assert read_json(tmp_path / "run" / "run.json")["state"] == "finished"


def test_a_terminal_without_unicode_shows_replacements(tmp_path: Path) -> None:
    # The encodings of the standard streams, and of files.
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    settings |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    overrides = [*TINY, "train.num_rounds=1", "privacy.accountant=rdp", "hydra.run.dir=run"]
    process = start(tmp_path, "train", *overrides, env=settings)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert "Logging error" not in errors
    assert re.search(r"[?ε] [?≤] \d", output)


@pytest.mark.parametrize("size", [300, 3_000, 8_000])
def test_a_full_disk_ends_in_one_line(size: int, tmp_path: Path) -> None:
    process = ForkedCommand(tmp_path, "train", *OPEN, "hydra.run.dir=run", file_size=size)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    [line] = errors.strip().splitlines()
    assert line.startswith("error: ")
    assert "cannot be written" in line
    assert "free disk space" in line
    if size > 1_500:
        assert read_json(tmp_path / "run" / "run.json")["state"] == "failed"


@pytest.mark.parametrize("command", ["export", "report"])
def test_an_output_path_that_cannot_be_written_is_one_line(command: str, tmp_path: Path, finished_run: Path) -> None:
    (tmp_path / "file").touch()

    process = ForkedCommand(tmp_path, command, str(finished_run), "--to", "file/x")
    _, errors = process.communicate(timeout=300)

    assert process.returncode == 1
    [line] = errors.strip().splitlines()
    assert "file" in line
    assert "Not a directory" in line or "File exists" in line
