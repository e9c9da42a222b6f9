"""Lines of the ServerApp's output that programs read: what a run on real nodes does, for those who follow it elsewhere.

The output is all that a SuperLink passes on while a run is in progress. Each line is a mark and a JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedsvd.runs.client_status import ClientStatus, read_statuses, statuses_document
from fedsvd.runs.folder import RunFolder, read_json, read_rows, replace_text, write_rows, write_text

MARK = "fedsvd-event "
# Diagnostics of each adapted layer, which are many, are in the run directory only.
_LEFT_OUT = "sites"


def started_event(config: str) -> str:
    """Return the line of a run that starts or resumes, with its configuration as YAML."""
    return _line({"event": "started", "config": config})


def row_event(row: Mapping[str, Any]) -> str:
    """Return the line of a round that has ended, with its row of ``metrics.jsonl``."""
    return _line({"event": "row", "row": {**row, _LEFT_OUT: {}}})


def statuses_event(statuses: Mapping[int, ClientStatus]) -> str:
    """Return the line of clients whose states have changed."""
    return _line({"event": "sites", **statuses_document(statuses)})


def read_event(line: str) -> dict[str, Any] | None:
    """Return the event in a line; None if it has none."""
    if not line.startswith(MARK):
        return None
    try:
        event = json.loads(line.removeprefix(MARK))
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def apply_event(event: Mapping[str, Any], folder: RunFolder) -> None:
    """Write what an event says to a run directory, so that it can be watched like that of a run on this machine.

    The directory has neither checkpoints nor an adapter until it is fetched.
    """
    match event:
        case {"event": "started", "config": str(config)}:
            write_text(folder.config, config)
        case {"event": "row", "row": dict(new)}:
            earlier = read_rows(folder.metrics) if folder.metrics.exists() else []
            # A resumed run may repeat rounds.
            kept = [row for row in earlier if row["server_round"] < new["server_round"]]
            write_rows(folder.metrics, [*kept, new])
        case {"event": "sites", "sites": dict()}:
            write_statuses(folder, read_statuses(read_json(folder.statuses)) | read_statuses(event))


def write_statuses(folder: RunFolder, statuses: Mapping[int, ClientStatus]) -> None:
    """Write ``sites.json``; after a power failure, it may be lost."""
    replace_text(folder.statuses, json.dumps(statuses_document(statuses)) + "\n")


def _line(event: Mapping[str, Any]) -> str:
    return MARK + json.dumps(event)
