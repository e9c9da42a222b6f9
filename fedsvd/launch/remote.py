"""A federation of real nodes: the run goes to a SuperLink that is up, and its folder comes back."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console

from fedsvd.config import FederationConfig
from fedsvd.errors import ConfigError, RunError
from fedsvd.launch.flower_cli import Connection, connect, strip_colors
from fedsvd.runs.folder import RunFolder, write_json, write_text

# What concerns the way to the SuperLink, and neither the server nor the nodes.
_OURS = tuple(f"federation.{key}=" for key in ("superlink", "root_certificates", "connection", "server_runs", "fetch"))
_PAUSE_S, _PATIENCE_S = 2.0, 600.0
# Flower logs what it does to the same stream, each line twice; its warnings and errors are worth a look, once.
_FLOWERS_OWN = re.compile(
    r"(INFO|DEBUG) *:|\d\d/\d\d/\d{4} \d\d:\d\d:\d\d:[A-Z]+:|Using SuperLink: |Successfully installed "
)
_FAREWELL = (
    "no longer following run {run_id}, which goes on. `fedsvd train resume={folder}` follows it again and fetches its "
    "folder; `flwr stop {run_id}` ends it."
)


@dataclass(frozen=True)
class RemoteRun:
    """A run that was handed over.

    Attributes:
        run_id: Flower's number for it.
        folder: The run's folder, as the ServerApp sees it.
    """

    run_id: int
    folder: str


def run_remote(federation: FederationConfig, overrides: Sequence[str], folder: RunFolder) -> None:
    """Run a federation on real nodes, follow it, and fetch its run folder.

    A folder whose run is going on, or done and not fetched, is followed and not run again; one whose run was cut off
    goes on from its last checkpoint, on the server.

    Args:
        federation: Where the SuperLink is, and how a folder comes back.
        overrides: What the run was composed from.
        folder: Where the run folder is to lie here.

    Raises:
        RunError: The SuperLink cannot be reached, the run failed there, or its folder cannot be fetched.
    """
    console = Console()
    with connect(federation) as connection:
        earlier = _earlier(folder)
        if earlier and _to_be_followed(connection.status(earlier.run_id)[0], folder):
            run = earlier
            console.print(f"run {run.run_id} was handed over before; following it", highlight=False)
        else:
            run = _submit(connection, federation, overrides, folder, earlier)
            console.print(f"run {run.run_id} handed to the SuperLink", highlight=False)
        try:
            status, details = _follow(connection, run, folder, console)
        except KeyboardInterrupt as stopped:
            raise RunError(_FAREWELL.format(run_id=run.run_id, folder=folder.root)) from stopped
    if status != "finished:completed":
        # What there is of a failed run helps to see why, but is no reason for a second error.
        _fetch(federation, run, folder, must=False)
        raise RunError(
            f"run {run.run_id} ended as {status} ({details or 'no details'}); its log is in {folder.remote_log}. "
            f"fedsvd train resume={folder.root} goes on from its last checkpoint."
        )
    _fetch(federation, run, folder, must=True)
    console.print(f"[bold]fetched to[/bold]  {folder.root}", soft_wrap=True, highlight=False)


def _to_be_followed(status: str, folder: RunFolder) -> bool:
    """Say whether an earlier run is going on, or is done and was never fetched."""
    return not status.startswith("finished") or (status == "finished:completed" and not folder.adapter.exists())


def _submit(
    connection: Connection,
    federation: FederationConfig,
    overrides: Sequence[str],
    folder: RunFolder,
    earlier: RemoteRun | None,
) -> RemoteRun:
    # Two users' clocks may agree; what is random in the name may not.
    name = f"{folder.root.parent.name}-{folder.root.name}-{secrets.token_hex(4)}"
    there = earlier.folder if earlier else f"{federation.server_runs.rstrip('/')}/{_safe(name)}"
    sent = [item for item in overrides if not item.startswith(("run_dir=", *_OURS))]
    line = shlex.join([*sent, f"run_dir='{there}'"])
    run = RemoteRun(connection.submit(line), there)
    write_json(folder.remote, asdict(run))
    return run


def _follow(connection: Connection, run: RemoteRun, folder: RunFolder, console: Console) -> tuple[str, str]:
    """Show what the run prints until it is over, through cuts of the line; return its status and details."""
    lines: list[str] = []
    lost_since: float | None = None
    while True:
        for number, line in enumerate(connection.log(run.run_id)):
            # After a cut the log comes from its start again.
            if number >= len(lines):
                lines.append(strip_colors(line))
                lost_since = None
                if not _FLOWERS_OWN.match(lines[-1]):
                    console.print(lines[-1], soft_wrap=True, highlight=False, markup=False)
        try:
            status, details = connection.status(run.run_id)
            lost_since = None
        except RunError:
            lost_since = lost_since or time.monotonic()
            if time.monotonic() - lost_since > _PATIENCE_S:
                raise
            status, details = "unknown", ""
        if status.startswith("finished"):
            write_text(folder.remote_log, "\n".join(lines) + "\n")
            return status, details
        time.sleep(_PAUSE_S)


def _fetch(federation: FederationConfig, run: RemoteRun, folder: RunFolder, *, must: bool) -> None:
    """Bring the run's folder here; raises `RunError` where it ``must`` come and does not."""
    try:
        if federation.fetch is None:
            shutil.copytree(run.folder, folder.root, dirs_exist_ok=True)
        else:
            words = [
                word.replace("{remote}", run.folder).replace("{local}", str(folder.root))
                for word in shlex.split(federation.fetch)
            ]
            subprocess.run(words, check=True, capture_output=True, text=True)  # noqa: S603 - the user's own command
    except (OSError, shutil.Error, subprocess.CalledProcessError) as error:
        if must:
            said = (getattr(error, "stderr", None) or str(error)).strip()
            raise RunError(
                f"run {run.run_id} is done, but its folder {run.folder} could not be fetched: {said}. It lies on the "
                "ServerApp's machine; see federation.fetch and federation.server_runs."
            ) from error


def _earlier(folder: RunFolder) -> RemoteRun | None:
    if not folder.remote.exists():
        return None
    try:
        return RemoteRun(**json.loads(folder.remote.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder.remote} does not name a run ({error}); delete it to hand over a new one."
        ) from error


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in name)
