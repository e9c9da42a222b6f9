"""The record of a run on real nodes, on this machine, until the server's is fetched, and if it cannot be fetched."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsvd.config import FederationConfig
from fedsvd.config.compose import compose, to_yaml
from fedsvd.errors import RunError
from fedsvd.launch import remote
from fedsvd.launch.following import Ended
from fedsvd.runs import events
from fedsvd.runs.folder import RunFolder, read_json, write_json, write_text
from fedsvd.watch.page import Page

FIRST = {"state": "failed", "reason": "DataError: the first reason", "run_id": 1, "pooling": "mean", "interrupted": 1}
FAILED, COMPLETED = Ended("finished:failed", "the second reason", 4), Ended("finished:completed", "", 4)
FETCHES = "cp -r {remote}/. {local}"
Follow = Callable[[RunFolder], Ended]


class Accepting:
    """A connection that accepts each run as run 2; run 1 has the given status."""

    def __init__(self, status: str) -> None:
        self._status = status

    def status(self, run_id: int) -> tuple[str, str]:
        return self._status, ""

    def submit(self, overrides: str, config_dirs: list[Path]) -> int:
        return 2


@pytest.fixture
def here(tmp_path: Path) -> RunFolder:
    """Return the directory of run 1, which has failed."""
    folder = RunFolder(tmp_path / "here")
    write_json(folder.record, FIRST)
    write_json(folder.overrides, ["federation=remote"])
    write_json(folder.remote, {"run_id": 1, "folder": str(tmp_path / "server")})
    return folder


def follow_again(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder, follow: Follow, fetch: str = "false {remote} {local}",
    status: str = "finished:failed",
) -> None:  # fmt: skip
    """Follow the run in a directory again, or resume it; by default, nothing can be fetched."""
    monkeypatch.setattr(remote, "connect", lambda federation: contextlib.nullcontext(Accepting(status)))
    monkeypatch.setattr(remote, "follow", lambda connection, run_id, folder, console: follow(folder))
    federation: FederationConfig = compose(["federation=remote", f"federation.fetch='{fetch}'"]).federation
    remote.run_remote(federation, ["federation=remote"], folder)


def server_record(here: RunFolder, record: Mapping[str, Any]) -> None:
    write_json(RunFolder(here.root.parent / "server").record, record)


def test_a_failed_run_that_is_resumed_is_shown_as_running(here: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    during: dict[str, Any] = {}

    def follow(folder: RunFolder) -> Ended:
        started = events.read_event(events.started_event(to_yaml(compose(["federation=remote"]))))
        assert started is not None
        events.apply_event(started, folder)
        during.update(read_json(folder.record), page=Page(folder, "run").live())
        return FAILED

    with pytest.raises(RunError):
        follow_again(monkeypatch, here, follow)

    assert "running" in during["page"]
    assert "the first reason" not in during["page"]
    assert (during["state"], during["reason"], during["run_id"]) == ("running", None, 2)
    # What the server's record will say: a second process did not finish, and the model is the same.
    assert (during["interrupted"], during["pooling"]) == (2, "mean")


def test_a_run_that_is_followed_again_is_shown_as_running(here: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    during: dict[str, Any] = {}

    def follow(folder: RunFolder) -> Ended:
        during.update(read_json(folder.record))
        return FAILED

    with pytest.raises(RunError, match="run 1 ended"):
        follow_again(monkeypatch, here, follow, status="running")

    # It is the same process on the server.
    assert (during["state"], during["run_id"], during["interrupted"]) == ("running", 1, 1)


@pytest.mark.parametrize(
    ("ended", "message"),
    [(FAILED, "run 2 ended as .*the second reason"), (COMPLETED, "run 2 completed, but")],
)
def test_the_end_of_a_run_that_cannot_be_fetched_is_recorded(
    ended: Ended, message: str, here: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=message) as error:
        follow_again(monkeypatch, here, lambda folder: ended)

    record = read_json(here.record)
    assert (record["state"], record["reason"]) == ("failed", f"RunError: {error.value}")


def test_a_run_that_cannot_be_followed_any_longer_is_recorded(here: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(folder: RunFolder) -> Ended:
        raise RunError("the SuperLink is away")

    with pytest.raises(RunError, match="away"):
        follow_again(monkeypatch, here, away)

    record = read_json(here.record)
    assert (record["state"], record["reason"]) == ("failed", "RunError: the SuperLink is away")


def test_the_reason_is_that_of_the_fetched_run(here: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"state": "failed", "reason": "RunError: its own words", "run_id": 2}
    server_record(here, own)

    with pytest.raises(RunError, match="RunError: its own words"):
        follow_again(monkeypatch, here, lambda folder: FAILED, FETCHES)

    assert read_json(here.record) == own


@pytest.mark.parametrize("earlier", [FIRST, {"state": "finished", "run_id": 1}])
def test_the_reason_is_not_that_of_the_run_before_where_the_resumed_one_was_refused(
    earlier: Mapping[str, Any], here: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A ServerApp that refuses to resume a run changes none of its files.
    server_record(here, earlier)

    with pytest.raises(RunError, match="the second reason"):
        follow_again(monkeypatch, here, lambda folder: FAILED, FETCHES)

    assert read_json(here.record) == earlier


def test_a_run_whose_server_was_killed_has_failed(here: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    server_record(here, {"state": "running", "run_id": 2})

    with pytest.raises(RunError, match="the second reason"):
        follow_again(monkeypatch, here, lambda folder: FAILED, FETCHES)

    assert read_json(here.record)["state"] == "failed"


def test_a_resumed_run_does_not_look_as_if_it_had_stopped_early(
    here: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(here.record, {"state": "finished", "stopped_early": {"server_round": 3}})
    write_text(here.adapter / "adapter_config.json", "{}")
    during: dict[str, Any] = {}

    def follow(folder: RunFolder) -> Ended:
        during.update(read_json(folder.record))
        return FAILED

    with pytest.raises(RunError):
        follow_again(monkeypatch, here, follow, status="finished:completed")

    assert "stopped_early" not in during
    assert (during["state"], during["interrupted"]) == ("running", 0)
