"""What is sent to a SuperLink, and Ctrl-C while the run is followed: it goes on, and the message says how to stop."""

import contextlib
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedsvd.config.compose import compose
from fedsvd.errors import ConfigError, Interruption
from fedsvd.launch import remote
from fedsvd.runs.folder import RunFolder


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
    settings = replace(compose(["federation=remote"]).federation, server_runs="/app/my runs", superlink="x:1")
    # What only this machine uses, such as an account in a command, is not sent.
    local = ["superlink=x:1", "root_certificates=/home/me/ca.crt", "connection=lab", "server_runs='/app/my runs'"]
    local.append("fetch='scp me@host:{remote} {local}'")
    overrides = [f"hydra.searchpath=['file://{tmp_path}']", "seed=1", *(f"federation.{item}" for item in local)]

    with pytest.raises(Interruption) as stopped:
        remote.run_remote(settings, [*overrides, "run_dir=here"], folder)

    assert "continues on the SuperLink as run 7" in stopped.value.kept
    # Flower's default connection is the SuperLink of this machine's simulations.
    assert "`flwr stop 7 deployment` stops it, with a connection to x:1 as in docs/deployment.md" in stopped.value.kept
    assert stopped.value.remedy.endswith(f"fedsvd train 'resume={folder.root}'")
    [(sent, config_dirs)] = connection.submitted
    assert config_dirs == [tmp_path]
    *settings_sent, run_dir = shlex.split(sent)
    assert settings_sent == ["seed=1"]
    assert compose([run_dir]).run_dir is not None
    assert str(compose([run_dir]).run_dir).startswith("/app/my runs/")


def test_an_interrupt_names_the_connection_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "connect", lambda federation: contextlib.nullcontext(InterruptedConnection()))
    settings = replace(compose(["federation=remote"]).federation, connection="our hospital")
    with pytest.raises(Interruption, match="`flwr stop 7 'our hospital'` stops it"):
        remote.run_remote(settings, ["seed=1"], RunFolder(tmp_path / "run"))


def test_a_variable_is_refused_where_it_would_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = InterruptedConnection()
    monkeypatch.setattr(remote, "connect", lambda federation: contextlib.nullcontext(connection))
    monkeypatch.setenv("FEDSVD_TEST_DEVICE", "cpu")
    settings, variable = compose(["federation=remote"]).federation, "${oc.env:FEDSVD_TEST_DEVICE}"

    with pytest.raises(ConfigError, match=r"device cannot be resolved .* let your shell expand them"):
        remote.run_remote(settings, [f"device={variable}"], RunFolder(tmp_path / "run"))
    assert not connection.submitted

    # Not sent.
    with pytest.raises(Interruption):
        remote.run_remote(settings, [f"federation.connection={variable}"], RunFolder(tmp_path / "other"))
