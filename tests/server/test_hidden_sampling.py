"""With client-level privacy, only the server's own files say which clients were sampled, or how many."""

import io
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict
from rich.console import Console
from run_directories import write_run

from fedsvd import tracking
from fedsvd.compat.flower import ErrorCode, set_task_identity
from fedsvd.config.compose import compose
from fedsvd.errors import PayloadError, RunError
from fedsvd.report import progress
from fedsvd.report.privacy_statement import guarantee_line, statement_markdown
from fedsvd.report.progress import Reporter
from fedsvd.runs.client_status import StatusBoard
from fedsvd.runs.events import read_event
from fedsvd.runs.folder import RunFolder, read_rows, write_rows
from fedsvd.runs.outgoing import outgoing_row
from server.app import _reporter
from server.clients import Clients
from server.evaluation import RoundEndCallback
from server.live_status import LiveStatus
from server.outcome import check_updates_used
from server.polling_grid import PollingGrid
from server.replies import RoundRecord, valid_replies
from server.retry_grid import RetryGrid

OF_CLIENTS: dict[str, Any] = {
    "client_epsilons": {"3": 2.0}, "clients_sampled": 1, "clients_used": 0, "clients_refused": {"3": "late"},
    "replies_dropped": 1, "bytes_down": 2048, "bytes_up": 512,
}  # fmt: skip
ROW: dict[str, Any] = {"server_round": 1, "accuracy": 0.5, "loss": 0.6, "epsilon": 2.0, "skipped": False}


def test_a_row_leaves_without_what_tells_who_was_sampled() -> None:
    hidden, shown = compose(["privacy=client_level"]), compose(["privacy=dp_sgd"])
    assert outgoing_row(ROW | OF_CLIENTS, hidden) == ROW
    assert outgoing_row(ROW | OF_CLIENTS, shown) == ROW | OF_CLIENTS


def test_what_an_export_says_is_the_same_whether_a_client_with_earlier_runs_was_sampled(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, "privacy=client_level", accuracy=0.7) for name in ("never", "sampled")]
    metrics = RunFolder(folders[1]).metrics
    rows = read_rows(metrics)
    rows[2]["client_epsilons"]["3"] = 17.5
    write_rows(metrics, rows)
    assert len({statement_markdown(folder) for folder in folders}) == 1
    (line,) = {guarantee_line(folder) for folder in folders}
    assert line.startswith("privacy: ε ≤ 6.00 at δ = 1e-05 per client")
    assert line.endswith("; this is ε of the run, clients' totals are in their own ledgers")
    assert "(ε is that of this run, rounded up; the budget was ε = 6)" in statement_markdown(folders[0])


@pytest.mark.parametrize(("charged", "expected"), [(0.0, 0.0), (None, None), (1.5, 1.5)])
def test_epsilon_of_a_row_is_the_servers(charged: float | None, expected: float | None, tmp_path: Path) -> None:
    strategy: Any = SimpleNamespace(client_level=SimpleNamespace(spend=None), first_round=0)
    config = compose(["experiment=smoke", "privacy=client_level"])
    callback = RoundEndCallback(config, RunFolder(tmp_path), strategy, Reporter(tmp_path, 2, 1e-5), ())
    callback.clients = {"3": {"epsilon": 17.5}}
    assert callback._row(RoundRecord(1, 4, epsilon=charged), {"loss": None})["epsilon"] == expected


@pytest.mark.parametrize(("privacy", "extra"), [("client_level", {}), ("dp_sgd", OF_CLIENTS)])
def test_events_of_a_run_on_real_nodes(
    privacy: str, extra: Mapping[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = compose(["experiment=smoke", f"privacy={privacy}", "federation=remote"])
    live = LiveStatus(config, RunFolder(tmp_path), Reporter(tmp_path, 2, 1e-5), [ROW | OF_CLIENTS])
    live.round_done(ROW | OF_CLIENTS | {"server_round": 2})
    events = [read_event(line) or {} for line in capsys.readouterr().out.splitlines()]
    rows = [event["row"] for event in events if event["event"] == "row"]
    assert rows == [{**ROW, **extra, "server_round": number, "sites": {}} for number in (1, 2)]


@pytest.mark.parametrize("privacy", ["client_level", "dp_sgd"])
def test_trackers_receive_the_largest_epsilon_and_no_client(
    privacy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: dict[str, float] = {}

    class Service:
        def log(self, server_round: int, values: Mapping[str, float]) -> None:
            logged.update(values)

        def close(self, succeeded: bool) -> None:
            pass

    monkeypatch.setattr(tracking, "check_tracking", lambda settings: None)
    monkeypatch.setattr(tracking, "_start", lambda config, folder: Service())
    config = compose(["experiment=smoke", f"privacy={privacy}", "tracking=tensorboard"])
    with tracking.open_tracker(config, RunFolder(tmp_path), print) as log_row:
        log_row(ROW | OF_CLIENTS)
    numbers = {"accuracy": 0.5, "loss": 0.6, "epsilon": 2.0}
    counts = {"clients_sampled", "clients_used", "replies_dropped", "bytes_down", "bytes_up", "client_epsilon/3"}
    assert logged.keys() - numbers.keys() == (counts if privacy == "dp_sgd" else set())
    assert {key: logged[key] for key in numbers} == numbers


@pytest.mark.parametrize("privacy", ["client_level", "dp_sgd"])
def test_a_terminal_shows_no_bar_of_clients(privacy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "output_console", lambda: Console(file=screen, force_terminal=True, width=120))
    with _reporter(compose(["experiment=smoke", f"privacy={privacy}"]), RunFolder(tmp_path)) as reporter:
        reporter.started(0, 2)
        reporter.reply_arrived(None)
        reporter.round_done(ROW | OF_CLIENTS if privacy == "dp_sgd" else ROW)
    assert "rounds" in screen.getvalue()
    assert ("clients" in screen.getvalue()) == (privacy == "dp_sgd")


@pytest.mark.parametrize("hides", [True, False])
def test_log_names_no_client_whose_reply_is_dropped(hides: bool, caplog: pytest.LogCaptureFixture) -> None:
    clients = Clients(compose(["experiment=smoke"]).federation, StatusBoard(4, hides_rounds=hides))
    clients.partitions = {77: 3}
    set_task_identity(1, 7, 1)
    record = RoundRecord(1, 1)
    reply = Message(Error(0, "late"), reply_to=Message(RecordDict(), 77, "train"))

    def unreachable(message: Message, partition: int) -> Any:
        raise PayloadError("unused")

    list(valid_replies([reply], record, clients, unreachable))
    assert "late" in record.refused[3]
    assert [("client 3" in entry.getMessage()) for entry in caplog.records] == ([] if hides else [True])


@pytest.mark.parametrize("logs", [True, False])
def test_log_names_no_node_that_is_asked_again(logs: bool, caplog: pytest.LogCaptureFixture) -> None:
    set_task_identity(1, 7, 1)
    request = Message(RecordDict(), 77, "train")
    crashed = Message(Error(ErrorCode.CLIENT_APP_CRASHED, "killed"), reply_to=request)

    class Crashing(PollingGrid):
        def __init__(self) -> None:
            pass

        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            return [crashed for _ in messages]

    grid = RetryGrid(Crashing(), lambda message: request, retries=1, retry_after_s=0.01, logs=logs)
    with caplog.at_level(logging.DEBUG):
        assert len(list(grid.send_and_receive([request], timeout=5))) == 1
    assert any("77" in entry.getMessage() for entry in caplog.records) == logs


def test_whether_a_run_fails_does_not_depend_on_who_was_sampled() -> None:
    unused = ROW | OF_CLIENTS | {"clients_used": 0, "skipped": False}
    check_updates_used([unused, unused], hides_clients=True)
    with pytest.raises(RunError, match="no client's update was used in any round"):
        check_updates_used([unused, unused])
    # The server's own budget skips rounds whoever is sampled.
    with pytest.raises(RunError, match="the budget is used up") as raised:
        check_updates_used([unused | {"skipped": True}], "the budget is used up", hides_clients=True)
    assert "client 3" not in str(raised.value)


def test_a_run_prints_and_logs_no_client(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from fedsvd.cli import main

    folder = tmp_path / "run"
    overrides = ["experiment=smoke", "privacy=client_level", "privacy.accountant=rdp", "plots=false"]
    assert main(["train", *overrides, "federation.num_clients=3", f"run_dir={folder}"]) == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["clients_used"] == 3
    assert rows[-1]["client_epsilons"].keys() == {"0", "1", "2"}
    printed = capfd.readouterr().out
    assert "round 2/2" in printed
    for hidden in ("client 0", "3/3", "KiB", "Privacy spent per"):
        assert hidden not in printed, hidden
    assert "client 0" not in (folder / "flower.log").read_text()
