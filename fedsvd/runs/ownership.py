"""Ownership of run directories: each belongs to one run, and one process at a time writes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedsvd.errors import ConfigError, InUseError, RunError
from fedsvd.runs.folder import RunFolder
from fedsvd.runs.storage import storage_error

_LOCK = ".running"
# The directories that this process has reserved.
_OWNED: set[Path] = set()


def create_directory(folder: Path, key: str) -> Path:
    """Create a directory that nobody else uses, with parents: ``folder``, or else ``folder-2``, ``folder-3``, ….

    Args:
        folder: The preferred directory.
        key: The key that chooses another directory, for the error message.

    Raises:
        RunError: It cannot be created.
    """
    number, name = 1, folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                name.mkdir()
            except FileExistsError:
                number += 1
                name = folder.with_name(f"{folder.name}-{number}")
            else:
                return name
    except OSError as error:
        raise _not_writable(name, key, error) from error


def use_directory(folder: Path, key: str, *, can_resume: bool = True) -> Path:
    """Create a directory that a user has named, unless it exists, and return it.

    Args:
        folder: The directory.
        key: The key that names it, for the error message.
        can_resume: Whether the command can resume the run that it holds; no audit can be resumed.

    Raises:
        ConfigError: It holds an earlier run or audit.
        RunError: It cannot be created.
    """
    try:
        result = _first_result(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(folder, key, error) from error
    if result:
        is_audit = result == RunFolder(folder).audit.name
        resume = f", or resume that run with resume={folder}" if can_resume and not is_audit else ""
        raise ConfigError(
            f"{key} = {str(folder)!r} is invalid: it holds an earlier {'audit' if is_audit else 'run'} ({result}), "
            f"which a new one would overwrite. Choose another directory{resume}."
        )
    return folder


@contextmanager
def owned(folder: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Reserve an existing run directory for this process; the reservation ends with the process, even if it is killed.

    Args:
        folder: The run directory.
        wait_s: Seconds to wait for another process to end.

    Raises:
        InUseError: Another process uses the directory.
        RunError: The directory cannot be written.
    """
    try:
        lock = FileLock(folder / _LOCK).acquire(timeout=wait_s)
    except Timeout as error:
        raise InUseError(
            f"{folder} is in use: another process is running this run. Wait until it has ended, or stop it."
        ) from error
    except OSError as error:
        raise storage_error(error, folder) from error
    with lock:
        _OWNED.add(folder.resolve())
        try:
            yield
        finally:
            _OWNED.discard(folder.resolve())


def is_owned(folder: Path) -> bool:
    """Return whether this process has reserved a run directory."""
    return folder.resolve() in _OWNED


def completed_rounds(folder: Path) -> int | None:
    """Return the last round with a complete checkpoint, or None if there is no checkpoint."""
    rounds = []
    # A checkpoint gets its final name once it is complete.
    for path in RunFolder(folder).checkpoints.glob("round-*"):
        with suppress(ValueError):
            rounds.append(int(path.name.removeprefix("round-")))
    return max(rounds, default=None)


def is_resumable(folder: Path) -> bool:
    """Return whether the run in a directory has something to resume.

    This is a checkpoint, or, on real nodes, a run that was submitted: its checkpoints are on the server.
    """
    return completed_rounds(folder) is not None or RunFolder(folder).remote.exists()


def _first_result(folder: Path) -> str:
    """Return the name of a result that a directory holds; empty if a new run would overwrite nothing."""
    paths = RunFolder(folder)
    ledgers = (folder / "clients", paths.server_ledger)
    files = (paths.metrics, paths.checkpoints, paths.adapter, paths.privacy, *ledgers, paths.remote, paths.audit)
    for path in (*files, folder / "sweep.json"):
        if path.exists():
            return path.relative_to(folder).as_posix()
    return ""


def _not_writable(folder: Path, key: str, error: OSError) -> RunError:
    return RunError(
        f"{folder} cannot be created ({error.strerror or error}): free disk space, or choose a directory that can be "
        f"written with {key}=DIR."
    )
