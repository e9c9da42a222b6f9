"""Checks of the files in a run directory: a damaged file is an error that names it, never an empty result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsvd.errors import RunError
from fedsvd.runs.folder import RunFolder

# What every version has written into config.yaml, and into a row of metrics.jsonl.
_CONFIG_KEYS = (
    "seed", "method.name", "model.source", "data.name", "privacy.name", "privacy.target_epsilon",
    "privacy.target_delta", "train.num_rounds", "federation.num_clients",
)  # fmt: skip
_ROW_KEYS = ("server_round", "accuracy")


def check_documents(folder: RunFolder) -> None:
    """Check the JSON files of a run that exist; the model and the checkpoints are not read.

    Raises:
        RunError: A file is truncated or otherwise not what a run writes.
    """
    objects = (folder.record, folder.privacy, folder.partitions, folder.tracking)
    lists = (folder.classes, folder.samples, folder.overrides)
    for path, kind in [*((path, dict) for path in objects), *((path, list) for path in lists)]:
        if path.exists():
            _read_document(path, kind)
    if folder.metrics.exists():
        read_metrics(folder.metrics)


def check_keys(folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Check that a configuration, by dotted key, has every key that a report needs; raises `RunError` if it has not."""
    lacking = [key for key in _CONFIG_KEYS if key not in config]
    if lacking:
        raise _damaged(folder.config, f"it has no {lacking[0]}")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of ``metrics.jsonl``.

    Raises:
        RunError: The file is missing, or a row is truncated or lacks a value that every run writes.
    """
    rows = []
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _damaged(path, f"row {number} is not JSON") from error
        if not isinstance(row, dict) or any(key not in row for key in _ROW_KEYS):
            raise _damaged(path, f"row {number} is incomplete")
        rows.append(row)
    if not rows:
        raise _damaged(path, "it is empty")
    return rows


def _read_document(path: Path, kind: type) -> None:
    try:
        value = json.loads(_read_text(path))
    except ValueError as error:
        raise _damaged(path, "it is empty" if not path.stat().st_size else "it is not JSON") from error
    if not isinstance(value, kind):
        raise _damaged(path, "it holds something else than a run writes")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise _damaged(path, str(reason)) from error


def _damaged(path: Path, reason: str) -> RunError:
    return RunError(
        f"{path} cannot be read ({reason}): the file is damaged. Restore it from a copy, or resume the run to write it "
        "again."
    )
