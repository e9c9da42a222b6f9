"""What a run was: when, with which versions, on which machine and data; and whether it came to its end."""

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
    """Keep ``run.json`` for the time of a run; a process that is killed leaves it at ``running``.

    Args:
        folder: The run's.
        facts: What else to write down.
        resumed: Whether the run goes on with an earlier one; then it keeps the time of that one's start.
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
    found = {"python": platform.python_version(), "fedsvd": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
