"""The local side of a run on real nodes: app bundle, connection to the SuperLink, following and fetching."""

import contextlib
import io
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fedsvd.cli import main
from fedsvd.config import FederationConfig
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, Interruption, RunError
from fedsvd.launch import remote
from fedsvd.launch.app_bundle import stage_app
from fedsvd.launch.flower_cli import Connection, connect
from fedsvd.launch.remote import RemoteRun
from fedsvd.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[3]
RUN = RemoteRun(7, "/app/runs/here-7")


def federation(**changes: object) -> FederationConfig:
    return replace(compose(["federation=remote"]).federation, **changes)  # type: ignore[arg-type]


def test_the_staged_app_contains_the_files_that_flower_bundles(tmp_path: Path) -> None:
    stage_app(tmp_path)
    command = ["git", "ls-files", "fedsvd/*.py", "server/*.py", "client/*.py", "conf/*.yaml", "pyproject.toml"]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*") if path.is_file()} == set(tracked)


def test_the_superlink_is_configured_for_flower(tmp_path: Path) -> None:
    certificate = tmp_path / 'a "quoted" ca.crt'
    certificate.touch()
    with connect(federation(superlink="fed.example.org:8443", root_certificates=str(certificate))) as connection:
        assert connection.home is not None
        config = tomllib.loads((connection.home / "config.toml").read_text())["superlink"]
    assert config[config["default"]] == {"address": "fed.example.org:8443", "root-certificates": str(certificate)}
    with connect(federation(root_certificates=None)) as connection:
        assert connection.home is not None
        assert "insecure = true" in (connection.home / "config.toml").read_text()
    with connect(federation(connection="mine")) as connection:
        assert connection == Connection("mine", None)


def test_a_missing_certificate_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "ca.crt"
    overrides = ["experiment=smoke", "federation=remote", f"federation.root_certificates={missing}"]
    assert main(["train", *overrides, f"hydra.run.dir={tmp_path / 'run'}"]) == 1
    printed = capsys.readouterr().err
    assert f"{missing}: there is no such file" in printed
    assert "scripts/certs" in printed


@pytest.mark.parametrize("fetch", ["cp {remote} here", "cp there {local}"])
def test_a_fetch_command_without_both_placeholders_is_rejected(fetch: str) -> None:
    with pytest.raises(ConfigError, match=r"federation\.fetch"):
        federation(fetch=fetch)


class UnstableConnection:
    """A connection whose log breaks twice and restarts, as with ``flwr log``, and whose status fails once."""

    def __init__(self) -> None:
        self.lines = [
            "INFO : Flower's own",
            "\x1b[92mINFO \x1b[0m:      its own",
            "round 1/2",
            "WARNING: lost",
            "round 2/2",
        ]
        self.lines_per_call = iter((2, 3, 5))
        self.statuses: Iterator[tuple[str, str] | None] = iter([("running", ""), None, ("finished:completed", "")])

    def log(self, run_id: int) -> Iterator[str]:
        assert run_id == RUN.run_id
        yield from self.lines[: next(self.lines_per_call)]

    def status(self, run_id: int) -> tuple[str, str]:
        status = next(self.statuses)
        if status is None:
            raise RunError("away")
        return status


def test_each_line_is_printed_once_despite_reconnects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_POLL_INTERVAL_S", 0)
    screen, folder = io.StringIO(), RunFolder(tmp_path)
    ended = remote._follow(UnstableConnection(), RUN, folder, Console(file=screen))  # type: ignore[arg-type]
    assert ended == ("finished:completed", "")
    assert screen.getvalue().splitlines() == ["round 1/2", "WARNING: lost", "round 2/2"]
    assert len(folder.remote_log.read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("status", "fetched", "followed"),
    [("running", False, True), ("finished:completed", False, True), ("finished:completed", True, False),
     ("finished:failed", False, False)],
)  # fmt: skip
def test_whether_a_run_that_was_submitted_before_is_followed(
    status: str, fetched: bool, followed: bool, tmp_path: Path
) -> None:
    if fetched:
        (tmp_path / "adapter").mkdir()
    assert remote._should_follow(status, RunFolder(tmp_path)) is followed


def test_a_folder_is_fetched_by_command_or_copied_on_this_machine(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target with spaces"
    source.mkdir()
    (source / "metrics.jsonl").write_text("{}\n")
    for fetch in ("cp -r {remote}/. {local}", None):
        remote._fetch(federation(fetch=fetch), RemoteRun(7, str(source)), RunFolder(target), required=True)
        assert (target / "metrics.jsonl").read_text() == "{}\n"
        (target / "metrics.jsonl").unlink()


@pytest.mark.parametrize("fetch", ["cp -r {remote}/. {local}", "no-such-command {remote} {local}", None])
def test_a_folder_that_cannot_be_fetched_is_reported(fetch: str | None, tmp_path: Path) -> None:
    lost = RemoteRun(7, str(tmp_path / "lost"))
    with pytest.raises(RunError, match="could not be fetched"):
        remote._fetch(federation(fetch=fetch), lost, RunFolder(tmp_path / "here"), required=True)
    remote._fetch(federation(fetch=fetch), lost, RunFolder(tmp_path / "here"), required=False)


def test_an_invalid_run_file_is_reported(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert remote._submitted_run(folder) is None
    folder.remote.write_text('{"run": 7}')
    with pytest.raises(ConfigError, match="does not name a run"):
        remote._submitted_run(folder)


def test_own_yaml_files_are_sent_along_but_replace_none(tmp_path: Path) -> None:
    own = tmp_path / "own"
    for name in ("mine", "smoke"):
        (own / "experiment").mkdir(parents=True, exist_ok=True)
        (own / "experiment" / f"{name}.yaml").write_text("seed: 9\n", encoding="utf-8")
    stage_app(tmp_path / "app", [own])
    experiments = tmp_path / "app" / "conf" / "experiment"
    assert (experiments / "mine.yaml").read_text() == "seed: 9\n"
    assert (experiments / "smoke.yaml").read_text() == (ROOT / "conf" / "experiment" / "smoke.yaml").read_text()


class InterruptedConnection:
    """A connection that accepts a run, and whose log is interrupted by the user."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, list[Path]]] = []

    def submit(self, overrides: str, config_dirs: list[Path]) -> int:
        self.submitted.append((overrides, config_dirs))
        return 7

    def log(self, run_id: int) -> Iterator[str]:
        raise KeyboardInterrupt


def test_an_interrupt_says_that_the_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = InterruptedConnection()
    monkeypatch.setattr(remote, "connect", lambda federation: contextlib.nullcontext(connection))
    folder = RunFolder(tmp_path / "a=b, c")
    overrides = [f"hydra.searchpath=['file://{tmp_path}']", "seed=1", "federation.superlink=x:1", "run_dir=here"]

    with pytest.raises(Interruption) as stopped:
        remote.run_remote(federation(server_runs="/app/my runs"), overrides, folder)

    assert "continues on the SuperLink as run 7" in stopped.value.kept
    assert stopped.value.remedy.endswith(f"fedsvd train 'resume={folder.root}'")
    [(sent, config_dirs)] = connection.submitted
    assert config_dirs == [tmp_path]
    seed, run_dir = shlex.split(sent)
    assert seed == "seed=1"
    assert compose([run_dir]).run_dir is not None
    assert str(compose([run_dir]).run_dir).startswith("/app/my runs/")
