"""The record of a run: start and end time, package versions, machine, data, and final state."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fedsvd import __version__
from fedsvd.runs.folder import RunFolder, read_json, write_json

PACKAGES = ("flwr", "torch", "transformers", "peft", "opacus", "datasets", "hydra-core", "numpy")
FINISHED, FAILED, RUNNING = "finished", "failed", "running"


@contextmanager
def record_run(folder: RunFolder, facts: Mapping[str, Any], *, resumed: bool = False) -> Iterator[None]:
    """Maintain ``run.json`` while a run is in progress; if the process is killed, its state remains ``running``.

    Args:
        folder: The run directory.
        facts: Further fields to record.
        resumed: Whether the run resumes an earlier one; if so, the recorded start time is that of the earlier run.
    """
    earlier = read_json(folder.record) if resumed else {}
    record = {
        "started_at": earlier.get("started_at", _now()),
        "finished_at": None,
        "reason": None,
        "versions": _versions(),
        "machine": {"platform": platform.platform(), "cpu_count": os.cpu_count()},
        **facts,
    }
    write_json(folder.record, {**record, "state": RUNNING})
    try:
        yield
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        write_json(folder.record, {**record, "state": FAILED, "reason": reason, "finished_at": _now()})
        raise
    write_json(folder.record, {**record, "state": FINISHED, "finished_at": _now()})


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "fedsvd": __version__}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
