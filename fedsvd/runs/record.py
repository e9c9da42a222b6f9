"""The record of a run: start and end time, package versions, machine, data, and final state."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedsvd import __version__
from fedsvd.config.quoting import resume_command
from fedsvd.errors import StoppedError, describe
from fedsvd.runs.folder import RunFolder, overwrite_json, read_json, write_json
from fedsvd.runs.storage import storage_errors

PACKAGES = ("flwr", "torch", "transformers", "peft", "opacus", "datasets", "hydra-core", "numpy")
FINISHED, FAILED, RUNNING, INTERRUPTED = "finished", "failed", "running", "interrupted"


@contextmanager
def record_run(folder: RunFolder, facts: Mapping[str, Any], *, resumed: bool = False) -> Iterator[dict[str, Any]]:
    """Maintain ``run.json`` while a run is in progress; if the process is killed, its state remains ``running``.

    Yields the fields of the record, to which fields can be added until the run ends.

    Args:
        folder: The run directory.
        facts: Further fields to record.
        resumed: Whether the run resumes an earlier one; if so, the recorded start time is that of the earlier run.

    Raises:
        RunError: A file of the run cannot be written.
    """
    earlier = read_json(folder.record) if resumed else {}
    record = {
        "started_at": earlier.get("started_at", utc_now()),
        "finished_at": None,
        "reason": None,
        "versions": _versions(),
        "machine": {"platform": platform.platform(), "cpu_count": os.cpu_count()},
        **facts,
    }
    advice = f"continue with {resume_command(folder.root)}"
    try:
        with storage_errors(folder.root, advice):
            write_json(folder.record, {**record, "state": RUNNING})
            yield record
            write_json(folder.record, {**record, "state": FINISHED, "finished_at": utc_now()})
    except BaseException as error:
        record_failure(folder, error, record)
        raise


def record_followed(folder: RunFolder, run_id: int, *, resumed: bool = False) -> None:
    """Record that a run is in progress on a SuperLink, which this process follows until it can fetch the record there.

    Without this, the state in which an earlier process of the run has ended would be shown as that of the run.

    Args:
        folder: The run directory on this machine.
        run_id: Flower's ID of the run.
        resumed: Whether it resumes the run whose record is here.
    """
    earlier = read_json(folder.record)
    # How the run has ended before says nothing of how it ends now; what was trained on is the same.
    kept = {key: value for key, value in earlier.items() if key != "stopped_early"}
    if resumed:
        kept["interrupted"] = interruptions(earlier)
    running = {"state": RUNNING, "reason": None, "finished_at": None, "run_id": run_id}
    write_json(folder.record, {"started_at": utc_now(), **kept, **running})


def interruptions(earlier: Mapping[str, Any]) -> int:
    """Return how many processes of a run did not finish, from its record before it is resumed."""
    return int(earlier.get("interrupted", 0)) + (earlier.get("state") != FINISHED)


def record_failure(folder: RunFolder, error: BaseException, record: Mapping[str, Any] | None = None) -> None:
    """Record that a run has failed or was interrupted, and why, where the disk allows it.

    Args:
        folder: The run directory.
        error: What ended the run.
        record: The run's other fields; by default those that are recorded.
    """
    if isinstance(error, KeyboardInterrupt | StoppedError):
        state, reason = INTERRUPTED, "interrupted by the user"
    else:
        state, reason = FAILED, describe(error)
    fields = read_json(folder.record) if record is None else record
    final = {**fields, "state": state, "reason": reason, "finished_at": utc_now()}
    with suppress(OSError):
        try:
            write_json(folder.record, final)
        except OSError:
            # A full disk has no space for a second file, but the file's own block has some.
            overwrite_json(folder.record, final)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "fedsvd": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def utc_now() -> str:
    """Return the current time in UTC, in ISO 8601 format."""
    return datetime.now(UTC).isoformat(timespec="seconds")
