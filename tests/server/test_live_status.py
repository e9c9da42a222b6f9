"""What a run says of its clients while it is in progress, and to whom."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from fedsvd.config.compose import compose
from fedsvd.errors import InUseError
from fedsvd.report.progress import Reporter
from fedsvd.runs.client_status import REPLIED, TRAINING, read_statuses
from fedsvd.runs.events import apply_event, read_event
from fedsvd.runs.folder import RunFolder, read_json, read_rows
from fedsvd.runs.ownership import owned
from server.app import _owned_on_server
from server.live_status import LiveStatus


def live_status(root: Path, *overrides: str) -> tuple[LiveStatus, io.StringIO]:
    config = compose(["experiment=smoke", *overrides])
    screen = io.StringIO()
    reporter = Reporter(root, 2, 1e-5, console=Console(file=screen), shows_statuses=config.federation.name == "remote")
    return LiveStatus(config, RunFolder(root), reporter, [{"server_round": 0}]), screen


def test_clients_and_rounds_of_a_remote_run_are_printed_for_people_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = RunFolder(tmp_path / "here"), RunFolder(tmp_path / "there")
    for folder in (here, there):
        folder.root.mkdir()
    live, screen = live_status(here.root, "federation=remote", "federation.num_clients=2")
    live.board.connected(0)
    live.board.requested([0, 1], 1)
    live.board.replied(1, 2.0)
    live.round_done({"server_round": 1})
    lines = screen.getvalue().splitlines()
    assert lines[:2] == ["client 0 connected", "round 1: waiting for clients 0, 1"]
    assert lines[2].startswith("round 1: client 1 replied after")
    for line in capsys.readouterr().out.splitlines():
        event = read_event(line)
        assert event is not None
        apply_event(event, there)
    assert [row["server_round"] for row in read_rows(there.metrics)] == [0, 1]
    assert read_json(there.statuses) == read_json(here.statuses)
    assert [status.state for status in read_statuses(read_json(here.statuses)).values()] == [TRAINING, REPLIED]


def test_a_run_on_this_machine_prints_nothing_and_client_level_privacy_hides_who_takes_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live, screen = live_status(tmp_path)
    live.board.requested([0], 1)
    assert RunFolder(tmp_path).statuses.exists()
    hidden, _ = live_status(tmp_path / "hidden", "privacy=client_level", "federation=remote")
    hidden.board.requested([0], 1)
    hidden.round_done({"server_round": 1})
    assert not RunFolder(tmp_path / "hidden").statuses.exists()
    assert screen.getvalue() == ""
    assert '"sites", ' not in capsys.readouterr().out


def test_server_owns_the_directory_of_a_remote_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.app._HANDOVER_S", 0.1)
    config, folder = compose(["experiment=smoke", "federation=remote"]), RunFolder(tmp_path / "new")
    with _owned_on_server(config, folder), pytest.raises(InUseError), _owned_on_server(config, folder):
        pass
    # In a simulation of fedsvd train, the process that starts the run owns it, and runs the ServerApp.
    with owned(folder.root), _owned_on_server(compose(["experiment=smoke"]), folder):
        pass


def test_a_run_of_flowers_own_command_owns_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.app._HANDOVER_S", 0.1)
    # Without federation=remote, its ServerApp cannot know from the configuration who has started it.
    config, folder = compose(["experiment=smoke"]), RunFolder(tmp_path / "run")
    with _owned_on_server(config, folder), pytest.raises(InUseError), owned(folder.root):
        pass
