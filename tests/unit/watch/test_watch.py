"""The page of a run in progress: what it shows, who may read it, and how it follows the run's files."""

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import browse

from fedsvd.cli import main
from fedsvd.commands.watch import watched
from fedsvd.config.compose import compose, to_yaml
from fedsvd.launch.flower_cli import Connection
from fedsvd.runs import events
from fedsvd.runs.client_status import EXCLUDED, REPLIED, TRAINING, ClientStatus, statuses_document
from fedsvd.runs.folder import RunFolder, write_json, write_rows
from fedsvd.runs.outgoing import outgoing_row
from fedsvd.watch.feed import Feed
from fedsvd.watch.page import Page
from fedsvd.watch.server import WatchServer

NOW = 1_800_000_000.0
INJECTED = "<script>alert('1')</script>"


def row(number: int) -> dict[str, Any]:
    phases = {"seconds_train": 7.0, "seconds_aggregate": 1.0, "seconds_evaluate": 1.0, "seconds_write": 1.0}
    epsilon = 1.5 * number if number else None
    return {
        "server_round": number, "accuracy": 0.5 + 0.1 * number, "loss": 0.6, "epsilon": epsilon, "clients_sampled": 2,
        "client_epsilons": {"0": epsilon} if number else {}, "clients_used": 1, "clients_refused": {}, "skipped": False,
        "signal_to_noise": None, "clipped_share": None, "bytes_down": 2048, "bytes_up": 512, "sites": {}, **phases,
    }  # fmt: skip


def write_run(root: Path, rounds: int) -> RunFolder:
    """Write the directory of a run of four rounds, ``rounds`` of which have ended."""
    folder = RunFolder(root)
    root.mkdir(parents=True, exist_ok=True)
    config = compose(["experiment=smoke", "train.num_rounds=4", "privacy.target_epsilon=6"])
    folder.config.write_text(to_yaml(config), encoding="utf-8")
    write_json(folder.record, {"state": "running"})
    write_rows(folder.metrics, [row(number) for number in range(rounds + 1)])
    statuses = {
        0: ClientStatus(REPLIED, NOW - 30, 2, 12.25, 9.5),
        1: ClientStatus(EXCLUDED, NOW - 40, 2, 0.5, None, f"the client declined: {INJECTED}"),
        2: ClientStatus(TRAINING, NOW - 75, 2),
    }
    write_json(folder.statuses, statuses_document(statuses))
    return folder


@contextmanager
def served(page: Page) -> Iterator[WatchServer]:
    with WatchServer(page, 0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def request(server: WatchServer, path: str, method: str = "GET", **headers: str) -> tuple[int, Mapping[str, str], str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)  # type: ignore[misc]
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def test_page_shows_rounds_metric_privacy_traffic_time_and_each_client(tmp_path: Path) -> None:
    folder = write_run(tmp_path, rounds=2)
    live = " ".join(Page(folder, "run", clock=lambda: NOW).live().split())
    for shown in (
        "2 of 4", "70.0%", "3.00", "of 6 (δ = 1e-05)", "7.5 KiB", "6.0 KiB to the clients, 1.5 KiB to the server",
        "last round 10 s, about 20 s left", "1 training, 1 replied, 1 excluded", ">75<", ">12.2<", ">9.5<",
    ):  # fmt: skip
        assert shown in live, shown
    # Half of the budget is spent, in half of the rounds, by client 0.
    assert live.count('style="width: 50.0%"') == 3
    assert INJECTED not in live
    assert "declined: &lt;script&gt;" in live


def test_report_is_drawn_again_when_rows_come_and_not_for_changes_of_clients(tmp_path: Path) -> None:
    folder = write_run(tmp_path, rounds=1)
    with served(Page(folder, "run", clock=lambda: NOW)) as server:
        first = json.loads(request(server, "/parts.json?version=0")[2])
        write_json(folder.statuses, statuses_document({0: ClientStatus(TRAINING, 0.0, 2)}))
        same = json.loads(request(server, f"/parts.json?version={first['version']}")[2])
        write_rows(folder.metrics, [row(number) for number in range(3)])
        new = json.loads(request(server, f"/parts.json?version={first['version']}")[2])
    assert "Accuracy over rounds" in first["report"]
    assert (same["version"], same["report"]) == (first["version"], None)
    assert "1 training" in same["live"]
    assert new["version"] == first["version"] + 1
    assert "2 of 4" in new["live"]


def test_only_this_machine_may_read_and_nobody_may_write(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.overrides.write_text("[]")
    before = sorted(tmp_path.iterdir())
    with served(Page(folder, "run")) as server:
        assert server.server_address[0] == "127.0.0.1"
        status, headers, text = request(server, "/")
        assert (status, headers["Cache-Control"]) == (200, "no-store")
        assert "waiting for the first round" in text
        # A site whose name was made to point to this machine.
        for host in ("attacker.example", f"attacker.example:{server.server_port}", "127.0.0.1"):
            assert request(server, "/", Host=host)[0] == 403
        assert request(server, "/", Host=f"localhost:{server.server_port}")[0] == 200
        assert [request(server, path)[0] for path in ("/overrides.json", "/../etc/passwd", "/report")] == [404] * 3
        assert [request(server, "/", method)[0] for method in ("POST", "PUT", "DELETE")] == [501] * 3
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_page_in_a_browser_changes_when_a_round_ends(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", rounds=1)

    class GrowingPage(Page):
        requests = 0

        def live(self) -> str:
            self.requests += 1
            if self.requests == 2:
                write_run(folder.root, rounds=3)
            return super().live()

    page = GrowingPage(folder, "run <1>", clock=lambda: NOW)
    with served(page) as server:
        # Timers run ahead of time, so that the page asks several times.
        text = browse(server.url, tmp_path / "profile", "--virtual-time-budget=9000", "--dump-dom")
    assert page.requests > 2
    assert "<h1>run &lt;1&gt;</h1>" in text
    assert "3 of 4" in text
    assert "1 of 4" not in text
    assert text.count("data:image/svg+xml;base64,") >= 3
    assert "<td>3</td>" in text.replace(' class="right"', "")


def test_a_run_of_a_superlink_is_watched_by_what_it_prints(tmp_path: Path) -> None:
    class Finished(Connection):
        def log(self, run_id: int) -> Iterator[str]:
            config = write_run(tmp_path / "server", rounds=2).config.read_text()
            yield from (events.started_event(config), *(events.row_event(row(number)) for number in range(3)))
            yield events.statuses_event({0: ClientStatus(REPLIED, NOW, 2, 8.0, 4.0)})

        def status(self, run_id: int) -> tuple[str, str]:
            return "finished:failed", "ServerApp failed"

    folder = RunFolder(tmp_path / "here")
    folder.root.mkdir()
    feed = Feed(Finished("lab", None), 7, folder)
    feed.run()
    assert feed.problem() == ""
    live = Page(folder, "run 7", feed.problem).live()
    for shown in ("failed", "ServerApp failed", "2 of 4", "1 replied", ">8.0<"):
        assert shown in live, shown


def test_a_run_with_client_level_privacy_is_watched_by_what_leaves_the_server(tmp_path: Path) -> None:
    config, folder = compose(["experiment=smoke", "privacy=client_level", "train.num_rounds=4"]), RunFolder(tmp_path)
    folder.config.write_text(to_yaml(config), encoding="utf-8")
    write_rows(folder.metrics, [outgoing_row(row(number), config) for number in range(3)])
    page = Page(folder, "run")
    text = " ".join((page.live() + page.report()).split())
    for shown in ("2 of 4", "70.0%", "3.00", "of 6 (δ = 1e-05)", "known to the server only", "Time by phase"):
        assert shown in text, shown
    assert "Traffic of all clients" not in text


@pytest.mark.parametrize(("patience", "shown"), [("2", "stopped early, after round 2 of 4"), ("null", "is truncated")])
def test_a_run_that_stopped_early_is_watched_to_its_end(patience: str, shown: str, tmp_path: Path) -> None:
    config = compose(["experiment=smoke", "train.num_rounds=4", f"train.early_stopping={patience}"])

    class StoppedEarly(Connection):
        def log(self, run_id: int) -> Iterator[str]:
            # The first round is the best one.
            rows = [row(number) | {"accuracy": 0.8} for number in range(3)]
            yield from (events.started_event(to_yaml(config)), *map(events.row_event, rows))

        def status(self, run_id: int) -> tuple[str, str]:
            return "finished:completed", "N/A"

    feed = Feed(StoppedEarly("lab", None), 7, RunFolder(tmp_path))
    feed.run()
    page = Page(RunFolder(tmp_path), "run 7", feed.problem)
    text = page.live() + page.report()
    assert shown in text
    assert ("the file is truncated" in text) == ("truncated" in shown)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "Usage: fedsvd watch RUN_DIR|CONNECTION"),
        (["runs/no-such-run"], 1, "runs/no-such-run is not a directory"),
        (["."], 1, "is not a run directory"),
        ([".", "port=http"], 2, "port = 'http' is invalid: expected a whole number"),
        ([".", "run=7"], 2, "run = 7 has no effect for a run directory"),
    ],
)
def test_what_cannot_be_watched_is_said(
    arguments: list[str], status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["watch", *arguments]) == status
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_unknown_connection_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert main(["watch", "no-such-lab"]) == 1
    assert "no-such-lab is neither a run directory nor a connection of Flower that answers" in capsys.readouterr().err


def test_a_port_in_use_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path, rounds=1)
    with watched(str(tmp_path)) as page, served(page) as server:
        assert main(["watch", str(folder.root), f"port={server.server_port}"]) == 2
    assert f"port = {server.server_port} cannot be used" in capsys.readouterr().err
