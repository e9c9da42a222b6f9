"""``fedsvd watch``: a page on this machine that shows a run while it is in progress."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from fedsvd.commands.usage import command_usage
from fedsvd.config.quoting import command
from fedsvd.errors import ConfigError, Interruption, RunError
from fedsvd.report.literal import literal
from fedsvd.runs.folder import RunFolder
from fedsvd.watch.page import Page
from fedsvd.watch.server import WatchServer

if TYPE_CHECKING:
    from fedsvd.launch.flower_cli import Connection


def run(arguments: Sequence[str]) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        ConfigError: The arguments are invalid, or the port is in use.
        RunError: There is no such run directory or connection, or the SuperLink has no such run.
        Interruption: The user has ended the command.
    """
    subject, port, run_id = _parse(arguments)
    try:
        with watched(subject, run_id) as page, WatchServer(page, port) as server:
            message = f"watching {subject}: open {server.url} in a browser on this machine"
            Console().print(literal(message), soft_wrap=True)
            server.serve_forever()
    except KeyboardInterrupt:
        again = f"watch it again with {command(['watch', *arguments])}"
        raise Interruption("the page has ended; the run has not.", again) from None


@contextmanager
def watched(subject: str, run_id: int | None = None) -> Iterator[Page]:
    """Return the page of a run directory, or of a run of a connection.

    Args:
        subject: A run directory, or the name of a connection in Flower's ``config.toml``.
        run_id: Flower's ID of the run; None for the connection's newest one.

    Raises:
        RunError: There is none.
        ConfigError: A run directory has no ``run_id``.
    """
    path = Path(subject)
    if path.is_dir():
        if run_id is not None:
            raise ConfigError(f"run = {run_id} has no effect for a run directory: leave it out.")
        yield Page(_run_folder(path), f"{path.resolve().name} · fedsvd watch")
        return
    if path.exists() or "/" in subject:
        raise RunError(f"{subject} is not a directory: give a run directory, or the name of a connection.")
    # Imports torch, which a run directory does not need.
    from fedsvd.launch.flower_cli import Connection
    from fedsvd.watch.feed import Feed

    connection = Connection(subject, None)
    found = _find_run(connection, run_id)
    with tempfile.TemporaryDirectory(prefix="fedsvd-watch-") as name:
        feed = Feed(connection, found, RunFolder(Path(name)))
        feed.start()
        yield Page(RunFolder(Path(name)), f"run {found} of {subject} · fedsvd watch", feed.problem)


def _run_folder(path: Path) -> RunFolder:
    folder = RunFolder(path)
    if not any(item.exists() for item in (folder.overrides, folder.config, folder.metrics)):
        raise RunError(
            f"{path} is not a run directory (it has neither {folder.overrides.name} nor {folder.metrics.name}): give "
            "the directory that fedsvd train prints, such as runs/DATE/TIME."
        )
    return folder


def _find_run(connection: Connection, run_id: int | None) -> int:
    try:
        if run_id is not None:
            connection.status(run_id)
            return run_id
        newest = connection.newest_run()
    except RunError as error:
        raise RunError(
            f"{connection.name} is neither a run directory nor a connection of Flower that answers: {error}"
        ) from error
    if newest is None:
        raise RunError(f"the connection {connection.name} has no run: start one with fedsvd train federation=remote.")
    return newest


def _parse(arguments: Sequence[str]) -> tuple[str, int, int | None]:
    """Return what is watched, the port (0: any), and the run ID, if one is given."""
    subjects = [item for item in arguments if not item.startswith(("port=", "run=", "-"))]
    if len(subjects) != 1 or any(item.startswith("-") for item in arguments):
        raise ConfigError(f"invalid arguments: fedsvd watch {' '.join(arguments)}. Usage: {command_usage('watch')}")
    numbers = {}
    for item in arguments:
        key, _, value = item.partition("=")
        if item not in subjects:
            if not value.isdecimal():
                raise ConfigError(f"{key} = {value!r} is invalid: expected a whole number, as in {key}=8080.")
            numbers[key] = int(value)
    return subjects[0], numbers.get("port", 0), numbers.get("run")
