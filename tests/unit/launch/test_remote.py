"""The local side of a run on real nodes: app bundle, connection to the SuperLink, following and fetching."""

import io
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedsvd.cli import main
from fedsvd.config import FederationConfig
from fedsvd.config.compose import compose
from fedsvd.config.quoting import path_override
from fedsvd.errors import ConfigError, RunError
from fedsvd.launch import following, remote
from fedsvd.launch.app_bundle import stage_app
from fedsvd.launch.flower_cli import Connection, connect
from fedsvd.launch.remote import RemoteRun
from fedsvd.runs import events
from fedsvd.runs.client_status import REPLIED, TRAINING, ClientStatus, read_statuses
from fedsvd.runs.folder import RunFolder, read_json, read_rows

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


class Scripted:
    """A connection that plays a script: what each call of ``flwr log`` prints, and the statuses after it.

    A status of None: the SuperLink does not answer.
    """

    def __init__(self, *script: Any) -> None:
        self.script = iter(script)
        self.submitted: list[str] = []

    def log(self, run_id: int) -> Iterator[str]:
        lines, *self.statuses = next(self.script)
        yield from lines

    def status(self, run_id: int) -> tuple[str, str]:
        status = self.statuses.pop(0)
        if status is None:
            raise RunError("away")
        return status

    def submit(self, overrides: str, config_dirs: list[Path]) -> int:
        self.submitted.append(overrides)
        return 6 + len(self.submitted)


RUNNING, COMPLETED = ("running", ""), ("finished:completed", "")
LOST = ("finished:failed", "No heartbeat received from the task")


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    monkeypatch.setattr(following, "_POLL_INTERVAL_S", 0)
    monkeypatch.setattr(following, "_AWAY_INTERVAL_S", 0)
    return Console(file=io.StringIO(), width=1000)


def printed(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_each_line_is_printed_once_despite_reconnects(tmp_path: Path, console: Console) -> None:
    lines = ["INFO : Flower's own", "\x1b[92mINFO \x1b[0m:      its own", "round 1/2", "WARNING: lost", "round 2/2"]
    connection = Scripted((lines[:2], RUNNING), (lines[:3], None, None, RUNNING), (lines, COMPLETED))
    ended = following.follow(connection, 7, RunFolder(tmp_path), console)  # type: ignore[arg-type]
    assert ended.is_complete
    assert len(ended.log) == 5
    first, away, back, *rest = printed(console)
    assert [first, *rest] == ["round 1/2", "WARNING: lost", "round 2/2"]
    assert away.startswith("the SuperLink does not answer")
    assert back.startswith("the SuperLink answers again, after")


def test_what_a_run_says_of_its_clients_and_rounds_is_in_its_directory_here(tmp_path: Path, console: Console) -> None:
    training, replied = ClientStatus(TRAINING, 5.0, 1), ClientStatus(REPLIED, 9.0, 1, 4.0, 3.5)
    rows = [{"server_round": number, "sites": {"q": {}}} for number in (0, 1, 1)]
    lines = [events.started_event("seed: 0\n"), events.statuses_event({0: training, 1: training})]
    lines += [*map(events.row_event, rows), events.statuses_event({1: replied}), f"{events.MARK}no JSON", "round 1/2"]
    folder = RunFolder(tmp_path)
    following.follow(Scripted((lines, COMPLETED)), 7, folder, console)  # type: ignore[arg-type]
    assert printed(console) == [f"{events.MARK}no JSON", "round 1/2"]
    assert folder.config.read_text() == "seed: 0\n"
    assert read_statuses(read_json(folder.statuses)) == {0: training, 1: replied}
    # A resumed run repeats rounds.
    assert read_rows(folder.metrics) == [{"server_round": number, "sites": {}} for number in (0, 1)]


def test_a_run_that_the_superlink_has_lost_is_resumed_until_it_makes_no_progress(
    tmp_path: Path, console: Console
) -> None:
    def lost_after(number: int) -> tuple[list[str], tuple[str, str]]:
        return ["once more", events.row_event({"server_round": number})], LOST

    script = [lost_after(2), lost_after(3), lost_after(3), lost_after(3), (["the end"], COMPLETED)]
    for last, completes in ((5, True), (4, False)):
        connection, folder = Scripted(*script[:last], lost_after(3)), RunFolder(tmp_path / str(last))
        folder.root.mkdir()
        run, ended = remote._follow_to_end(connection, federation(), ["seed=1"], folder, RUN, console)  # type: ignore[arg-type]
        assert ended.is_complete is completes
        resumed = [shlex.join(["seed=1", *(path_override(key, RUN.folder) for key in ("resume", "run_dir"))])]
        assert connection.submitted == resumed * 4
        assert run == RemoteRun(10, RUN.folder)
        assert folder.remote_log.read_text().splitlines()[:2] == ["once more"] * 2
    assert sum("charged again" in line for line in printed(console)) == 8


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
