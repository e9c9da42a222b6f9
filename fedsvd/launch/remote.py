"""A federation of real nodes: submit the run to a running SuperLink, follow it, and fetch its run directory."""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from fedsvd.config import FederationConfig
from fedsvd.config.compose import compose
from fedsvd.config.paths import override_key
from fedsvd.config.quoting import path_override, resume_command
from fedsvd.config.search_path import config_dirs, is_search_path, search_paths
from fedsvd.errors import ConfigError, Interruption, RunError
from fedsvd.launch.flower_cli import Connection, connect
from fedsvd.launch.following import Ended, follow
from fedsvd.report.console import output_console
from fedsvd.report.literal import literal
from fedsvd.runs.folder import RunFolder, read_json, write_json, write_text
from fedsvd.runs.record import FAILED, RUNNING, record_failure, record_followed

# Overrides that only this process uses; they are not sent to the server or the nodes.
_LOCAL_KEYS = ("superlink", "root_certificates", "connection", "server_runs", "fetch")
_LOCAL_OVERRIDES = tuple(f"federation.{key}=" for key in _LOCAL_KEYS)
# A run that is lost this often without a new round in between has another problem than the connection.
_MAX_LOSSES = 3


@dataclass(frozen=True)
class RemoteRun:
    """A run that was submitted to a SuperLink.

    Attributes:
        run_id: Flower's run ID.
        folder: The run directory, as a path on the ServerApp's machine.
    """

    run_id: int
    folder: str


def run_remote(federation: FederationConfig, overrides: Sequence[str], folder: RunFolder) -> None:
    """Run a federation on real nodes, follow it, and fetch its run directory.

    If ``folder`` belongs to a run that is in progress, or that completed and was not fetched, that run is followed
    instead of submitting a new one. A run that did not complete resumes from its last checkpoint on the server.

    Args:
        federation: Connection settings, and how the run directory is fetched.
        overrides: The overrides that the run was composed from.
        folder: The local run directory.

    Raises:
        ConfigError: What is sent reads an environment variable, which the server and the nodes refuse.
        RunError: The SuperLink cannot be reached, the run failed there, or its run directory cannot be fetched.
    """
    compose([*search_paths(overrides), *_sent(overrides)], environment=False)
    console = output_console()
    with connect(federation) as connection:
        earlier = _submitted_run(folder)
        if earlier and _should_follow(connection.status(earlier.run_id)[0], folder):
            run = earlier
            record_followed(folder, run.run_id)
            console.print(f"run {run.run_id} was already submitted; following it", highlight=False)
        else:
            run = _submit(connection, federation, overrides, folder, earlier)
            console.print(f"run {run.run_id} submitted to the SuperLink", highlight=False)
        try:
            run, ended = _follow_to_end(connection, federation, overrides, folder, run, console)
            _fetch_ended(federation, run, ended, folder)
        except RunError as error:
            # The record is still the one written here, or the ServerApp was killed.
            if read_json(folder.record).get("state") == RUNNING:
                record_failure(folder, error)
            raise
    console.print(literal("fetched to", "bold"), literal(f" {folder.root}"), soft_wrap=True)


def _should_follow(status: str, folder: RunFolder) -> bool:
    """Return whether an earlier run is in progress, or completed but was not fetched."""
    return not status.startswith("finished") or (status == "finished:completed" and not folder.adapter.exists())


def _submit(
    connection: Connection,
    federation: FederationConfig,
    overrides: Sequence[str],
    folder: RunFolder,
    earlier: RemoteRun | None,
) -> RemoteRun:
    # Two users may start runs at the same time, so the name needs a random part.
    name = f"{folder.root.parent.name}-{folder.root.name}-{secrets.token_hex(4)}"
    server_folder = earlier.folder if earlier else f"{federation.server_runs.rstrip('/')}/{_safe_name(name)}"
    sent = [*_sent(overrides), path_override("run_dir", server_folder)]
    run_id = connection.submit(shlex.join(sent), config_dirs(overrides))
    run = RemoteRun(run_id, server_folder)
    write_json(folder.remote, asdict(run))
    record_followed(folder, run_id, resumed=earlier is not None)
    return run


def _sent(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that are sent; the YAML files of the user's own directories are sent as files."""
    return [
        item for item in overrides if not (is_search_path(item) or item.startswith(("run_dir=", *_LOCAL_OVERRIDES)))
    ]


def _follow_to_end(
    connection: Connection,
    federation: FederationConfig,
    overrides: Sequence[str],
    folder: RunFolder,
    run: RemoteRun,
    console: Console,
) -> tuple[RemoteRun, Ended]:
    """Follow a run until it ends; resume it from its last checkpoint each time that the SuperLink has lost it."""
    losses, rounds = 0, -1
    log: list[str] = []
    while True:
        try:
            ended = follow(connection, run.run_id, folder, console)
        except KeyboardInterrupt as stopped:
            raise Interruption(
                f"the run itself continues on the SuperLink as run {run.run_id}; {_how_to_stop(federation, run)}.",
                f"follow it and fetch its run directory with {resume_command(folder.root)}",
            ) from stopped
        log += ended.log
        write_text(folder.remote_log, "\n".join(log) + "\n")
        losses = 1 if ended.rounds > rounds else losses + 1
        if not ended.is_lost or losses > _MAX_LOSSES:
            return run, ended
        rounds = max(rounds, ended.rounds)
        lost = run.run_id
        resume = [path_override("resume", run.folder)] * (not any(override_key(o) == "resume" for o in overrides))
        run = _submit(connection, federation, [*overrides, *resume], folder, run)
        console.print(
            f"run {lost} was given up by the SuperLink ({ended.details}), as after an outage of more than a minute; it "
            f"continues as run {run.run_id} from its last checkpoint. A round that was under way is repeated, and is "
            "charged again to the clients' ledgers",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def _how_to_stop(federation: FederationConfig, run: RemoteRun) -> str:
    # Without the name of a connection, flwr stops a run of the user's default one, which is another SuperLink.
    stop = shlex.join(["flwr", "stop", str(run.run_id), federation.connection or "deployment"])
    if federation.connection:
        return f"`{stop}` stops it"
    return f"`{stop}` stops it, with a connection to {federation.superlink} as in docs/deployment.md"


def _fetch_ended(federation: FederationConfig, run: RemoteRun, ended: Ended, folder: RunFolder) -> None:
    """Fetch the directory of a run that has ended.

    Raises:
        RunError: The run is not complete, or its directory cannot be fetched.
    """
    # The partial run directory helps to find the cause, but failing to fetch it must not hide the error below.
    _fetch(federation, run, folder, required=ended.is_complete)
    if not ended.is_complete:
        raise RunError(
            f"run {run.run_id} ended as {ended.status} ({_reason(folder, run) or ended.details or 'no details'}); its "
            f"log is in {folder.remote_log}. Resume it from its last checkpoint with {resume_command(folder.root)}"
        )


def _fetch(federation: FederationConfig, run: RemoteRun, folder: RunFolder, *, required: bool) -> None:
    """Fetch the run directory from the server.

    Raises:
        RunError: It cannot be fetched, and ``required`` is set.
    """
    try:
        if federation.fetch is None:
            shutil.copytree(run.folder, folder.root, dirs_exist_ok=True)
        else:
            command = [
                argument.replace("{remote}", run.folder).replace("{local}", str(folder.root))
                for argument in shlex.split(federation.fetch)
            ]
            subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - the user's own command
    except (OSError, shutil.Error, subprocess.CalledProcessError) as error:
        if required:
            message = (getattr(error, "stderr", None) or str(error)).strip()
            raise RunError(
                f"run {run.run_id} completed, but its directory {run.folder} could not be fetched: {message}. It is on "
                "the ServerApp's machine; check federation.fetch and federation.server_runs."
            ) from error


def _reason(folder: RunFolder, run: RemoteRun) -> str:
    """Return why the run failed, as its fetched directory says; empty if it does not say."""
    record = read_json(folder.record)
    # A ServerApp that fails before it writes a record leaves that of the run before.
    is_own = record.get("state") == FAILED and record.get("run_id") == run.run_id
    return str(record.get("reason") or "") if is_own else ""


def _submitted_run(folder: RunFolder) -> RemoteRun | None:
    """Return the run that was submitted from a local run directory before, if any."""
    if not folder.remote.exists():
        return None
    try:
        return RemoteRun(**json.loads(folder.remote.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{folder.remote} does not name a run ({error}); delete it to submit a new run.") from error


def _safe_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name)
