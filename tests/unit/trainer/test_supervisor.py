"""``fedsvd trainer``: a trainer that was started beforehand, by the command itself."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import trivial_handler
from flwr.app import ConfigRecord, Context, Message, RecordDict
from loopback import wait_until

import fedsvd
from fedsvd.cli import main
from fedsvd.compat.flower import set_task_identity
from fedsvd.errors import TrainerError
from fedsvd.trainer import connection, sockets
from fedsvd.trainer.service import PRELOADED
from fedsvd.trainer.settings import read_settings

pytestmark = pytest.mark.slow


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory with a short path, and an app in it with a copy of the library."""
    path = Path(tempfile.mkdtemp(dir="/tmp"))
    shutil.copytree(Path(fedsvd.__file__).parent, path / "app" / "fedsvd")
    shutil.copy(trivial_handler.__file__, path / "app")
    # Importing the real ones takes seconds.
    (path / "empty").mkdir()
    for name in PRELOADED:
        (path / "empty" / f"{name}.py").touch()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def command(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """The running command."""
    path = os.pathsep.join(filter(None, [str(folder / "empty"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "fedsvd.cli", "trainer", f"socket={folder / 'a.sock'}"]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, env=environment, cwd="/", stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def send(folder: Path, run_id: int = 7, action: str = "", ttl: float = 60) -> ConfigRecord:
    set_task_identity(1, run_id, 2)
    node_config: dict[str, str | int] = {"trainer": str(folder / "a.sock")}
    message = Message(RecordDict({"task": ConfigRecord({"action": action})}), 2, "train", ttl=ttl)
    context = Context(run_id, 2, dict(node_config), RecordDict(), {})
    settings, handler = read_settings(node_config), "trivial_handler:answer"
    return connection.answer(message, context, settings, folder / "app", handler).content.config_records["seen"]


def test_command_keeps_a_trainer_over_runs_and_kills(folder: Path, command: subprocess.Popen[str]) -> None:
    assert command.stdout is not None
    assert f"the trainer listens on {folder / 'a.sock'}" in command.stdout.readline()
    first = send(folder)
    assert first["preloaded"] is True
    # The run's code, in the directory of the ClientApp, whichever the command was started with.
    assert Path(str(first["library"])).is_relative_to(folder / "app")
    assert first["cwd"] == str(Path.cwd())
    assert send(folder)["messages"] == 2
    second = send(folder, run_id=8)
    assert (second["messages"], second["pid"] == first["pid"]) == (1, False)

    with pytest.raises(TrainerError, match="worked on this message until its deadline"):
        send(folder, 8, "hang", ttl=1)
    with pytest.raises(TrainerError, match=r"ended while it worked on this message; see the node's log"):
        send(folder, 8, "leave")
    third = send(folder, run_id=8)
    assert third["messages"] == 1
    assert not connection._started

    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=30)
    assert command.returncode == 130
    assert "the trainer has ended.\nstart it again with fedsvd trainer socket=" in errors
    wait_until(lambda: not Path(f"/proc/{third['pid']}").exists(), 20, "the end of the trainer")
    assert not (folder / "a.sock").exists()


def test_missing_trainer_and_wrong_arguments_are_errors(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(connection, "_ABSENT_S", 0.0)
    path = folder / "a.sock"
    with pytest.raises(TrainerError, match=f"no trainer listens on {path}: start one with fedsvd trainer"):
        send(folder)
    assert main(["trainer", "path=/x"]) == 2
    assert "Usage: fedsvd trainer socket=PATH" in capsys.readouterr().err
    with sockets.listen(path):
        assert main(["trainer", f"socket={path}"]) == 1
    assert f"another trainer listens on {path}" in capsys.readouterr().err
    assert main(["trainer", f"socket={folder / 'none' / 'a.sock'}"]) == 1
    assert "cannot be created (No such file or directory)" in capsys.readouterr().err
    assert main(["trainer", f"socket=/{'x' * 120}"]) == 1
    assert "has 121 bytes" in capsys.readouterr().err


def test_trainer_that_fails_repeatedly_ends_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "empty" / "torch.py").write_text("raise ImportError('no torch')")
    environment = os.environ | {"PYTHONPATH": str(folder / "empty")}
    program = [sys.executable, "-m", "fedsvd.cli", "trainer", f"socket={folder / 'a.sock'}"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)

    assert done.returncode == 1
    assert "ImportError: no torch" in done.stderr
    assert "the trainer failed 3 times at its start, with exit status 1" in done.stderr
