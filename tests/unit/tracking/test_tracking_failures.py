"""A tracking service that is wrong, goes away, or cannot be closed."""

import http.server
import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedsvd import tracking
from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, DivergedError
from fedsvd.runs.folder import RunFolder, read_json
from fedsvd.runs.record import record_run

ROWS: list[Mapping[str, Any]] = [{"server_round": number, "accuracy": 0.5} for number in range(3)]
needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    # So that what the tracker sets is unset after the test.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def run(
    folder: Path,
    overrides: list[str],
    *,
    after_first: Callable[[], None] = lambda: None,
    error: Exception | None = None,
) -> list[str]:
    """Record a run that logs three rows, and perhaps fails then; return the warnings."""
    warnings: list[str] = []
    files = RunFolder(folder)
    with (
        record_run(files, {}),
        tracking.open_tracker(compose(["experiment=smoke", *overrides]), files, warnings.append) as log_row,
    ):
        log_row(ROWS[0])
        after_first()
        for row in ROWS[1:]:
            log_row(row)
        if error is not None:
            raise error
    return warnings


class Service(http.server.BaseHTTPRequestHandler):
    """As much of an MLflow server as a client needs to create a run and log to it."""

    def do_GET(self) -> None:
        self.answer({"experiment": {"experiment_id": "1", "name": "fedsvd", "lifecycle_stage": "active"}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        info = {
            "run_id": "a1",
            "run_uuid": "a1",
            "experiment_id": "1",
            "status": "RUNNING",
            "lifecycle_stage": "active",
        }
        self.answer({"run": {"info": info, "data": {}}})

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[http.server.ThreadingHTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    stop(server)
    thread.join()


def stop(server: http.server.ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


def logged_to(server: http.server.ThreadingHTTPServer) -> list[str]:
    return ["tracking=mlflow", f"tracking.uri=http://127.0.0.1:{server.server_port}"]


@pytest.mark.slow
@needs_mlflow
def test_a_run_completes_after_its_service_has_gone_away(
    service: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    [warning] = run(tmp_path, logged_to(service), after_first=lambda: stop(service))

    assert "tracking=mlflow failed and is disabled for the rest of the run" in warning
    assert read_json(tmp_path / "run.json")["state"] == "finished"


@pytest.mark.slow
@needs_mlflow
def test_a_run_that_fails_after_its_service_has_gone_away_reports_its_own_error(
    service: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    with pytest.raises(DivergedError, match="the loss is not finite"):
        run(
            tmp_path,
            logged_to(service),
            after_first=lambda: stop(service),
            error=DivergedError("the loss is not finite"),
        )

    assert read_json(tmp_path / "run.json")["reason"] == "DivergedError: the loss is not finite"


@pytest.mark.slow
@needs_mlflow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "mongo://host/db"])
def test_a_wrong_address_is_an_error_before_the_first_round(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be started") as caught:
        run(tmp_path, ["tracking=mlflow", f"tracking.uri={uri}"])

    assert f"tracking.uri = '{uri}'" in str(caught.value)
    assert "set tracking=none" in str(caught.value)


class Unavailable(Service):
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_error(503)


@pytest.mark.slow
@needs_mlflow
@pytest.mark.parametrize(("chosen", "requests"), [(None, 4), ("1", 2)])
def test_a_service_that_is_down_is_asked_again_a_few_times_unless_the_user_says_how_often(
    chosen: str | None, requests: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chosen is None:
        monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")
    else:
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", chosen)
    for name in ("BACKOFF_FACTOR", "BACKOFF_JITTER"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", "0")
    monkeypatch.setattr(Unavailable, "requests", 0)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Unavailable)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with pytest.raises(ConfigError, match="cannot be started"):
            run(tmp_path, logged_to(server))
    finally:
        stop(server)
        thread.join()
    assert Unavailable.requests == requests


@pytest.mark.slow
@needs_mlflow
def test_the_default_store_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.chdir(tmp_path)
    # So that what the tracker sets is unset after the test.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")

    assert run(tmp_path / "run", ["tracking=mlflow"]) == []

    client = MlflowClient(tracking_uri=(tmp_path / "runs" / "mlruns").as_uri())
    assert client.get_run(read_json(tmp_path / "run" / "tracking.json")["mlflow"]).info.status == "FINISHED"


def test_a_service_that_fails_only_at_the_end_causes_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def close(succeeded: bool) -> None:
        raise OSError("no route to host")

    tracker = SimpleNamespace(log=lambda server_round, values: None, close=close)
    monkeypatch.setattr(tracking, "check_tracking", lambda settings: None)
    monkeypatch.setitem(sys.modules, "fedsvd.tracking.wandb_run", SimpleNamespace(start=lambda *_: tracker))

    [warning] = run(tmp_path, ["tracking=wandb"])

    assert "tracking=wandb failed at the end of the run (no route to host)" in warning
    assert read_json(tmp_path / "run.json")["state"] == "finished"
