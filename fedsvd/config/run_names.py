"""Names of the run directories of a sweep."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

# Stores the arguments of a sweep in its directory, so that it can be resumed from the directory alone.
SWEEP_FILE = "sweep.json"

# Of the name of a file, in bytes, on Linux and macOS.
_MAX_LENGTH = 255
# Of the readable part of a name that has a hash.
_MAX_READABLE = 200


def run_name(overrides: str, sweep_dir: str) -> str:
    """Return the name of a run's directory, relative to the directory of its sweep.

    Args:
        overrides: The overrides that the sweep varies, as in ``method=fedsvd,seed=0``.
        sweep_dir: The directory of the sweep. A run that it had before it was extended by another key stays where it
            is: ``names`` in `SWEEP_FILE` has its directory.
    """
    try:
        existing = json.loads(Path(sweep_dir, SWEEP_FILE).read_text(encoding="utf-8")).get("names", {}).get(overrides)
    except (OSError, ValueError):
        existing = None
    return existing if existing and Path(sweep_dir, existing).is_dir() else directory_name(overrides, sweep_dir)


def directory_name(overrides: str, sweep_dir: str) -> str:
    """Return the name that overrides give to a run's directory, which is directly in the directory of its sweep.

    It is the overrides themselves if they can be the name of a file, and otherwise a part of them with their hash.

    Args:
        overrides: The overrides that the sweep varies, as in ``method=fedsvd,seed=0``.
        sweep_dir: The directory of the sweep. A run that an earlier version has put several levels below it stays
            there, so that the sweep can be resumed.
    """
    if "/" not in overrides and len(os.fsencode(overrides)) <= _MAX_LENGTH:
        return overrides
    # Path.is_dir would raise an error for a name that is too long.
    if ".." not in Path(overrides).parts and os.path.isdir(Path(sweep_dir, overrides)):  # noqa: PTH112
        return overrides
    readable = os.fsencode(overrides.replace("/", "_"))[:_MAX_READABLE].decode("utf-8", "ignore")
    return f"{readable}-{hashlib.sha256(os.fsencode(overrides)).hexdigest()[:16]}"
