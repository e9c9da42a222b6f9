"""How far a run is, in words: from its run directory, which another process writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fedsvd.privacy.rounding import rounded_up
from fedsvd.report.labels import clients_label, method_label, planned_rounds
from fedsvd.report.loaded_runs import Run
from fedsvd.report.tables import PHASES, has_client_counts
from fedsvd.runs.client_status import CONNECTED, EXCLUDED, MISSING, REPLIED, TRAINING, ClientStatus

_STATES = (TRAINING, REPLIED, CONNECTED, EXCLUDED, MISSING)
_MAX_CLIENTS = 50
# The time that is left is estimated from the last rounds. The first of a run is often slow.
_RECENT = 5


@dataclass(frozen=True)
class Tile:
    """A number on the page.

    Attributes:
        label: What it is.
        value: The number.
        note: A line below it.
        share: How much of its maximum it is, from 0 to 1; None if it has none.
    """

    label: str
    value: str
    note: str = ""
    share: float | None = None


@dataclass(frozen=True)
class ClientRow:
    """A row of the table of clients."""

    name: str
    state: str
    kind: str
    server_round: str
    seconds: str
    train_seconds: str
    epsilon: str
    share: float | None
    reason: str


def subject(run: Run) -> str:
    """Say what is trained on what."""
    config = run.config
    return f"{method_label(config)}, {config['model.source']}, {config['data.name']}, {clients_label(config)}"


def tiles(run: Run) -> list[Tile]:
    """Return rounds, metric, ε, traffic and seconds."""
    rows, planned = run.rows, planned_rounds(run.config)
    done = int(rows[-1]["server_round"])
    return [
        Tile("round", f"{done} of {planned}", _skipped(rows), done / planned if planned else 1.0),
        _metric_tile(run),
        _epsilon_tile(run),
        _traffic_tile(rows),
        _time_tile(rows, planned - done if run.state == "unfinished" else 0),
    ]


def _skipped(rows: Sequence[Mapping[str, Any]]) -> str:
    skipped = sum(bool(row["skipped"]) for row in rows)
    return f"{skipped} skipped" if skipped else ""


def _metric_tile(run: Run) -> Tile:
    metric, evaluated = run.metric, run.evaluated_rows
    if not evaluated:
        return Tile(f"held-out {metric.label}", "–", "not evaluated")
    best = max(evaluated, key=lambda row: row[metric.key])
    note = f"round {evaluated[-1]['server_round']}; best {metric.format(best[metric.key])} in {best['server_round']}"
    return Tile(f"held-out {metric.label}", metric.format(run.score), note)


def _epsilon_tile(run: Run) -> Tile:
    if run.budget is None:
        return Tile("ε spent", "–", "no privacy guarantee")
    # The claim of a run in progress counts the round that is under way, too; the row and the clients do not yet.
    spent = (run.epsilon if run.state == "finished" else run.rows[-1]["epsilon"]) or 0.0
    whose = "this run" if run.claim.unit == "client" else "largest of the clients"
    note = f"{whose}, of {run.budget:g} (δ = {run.claim.delta:g})"
    return Tile("ε spent", rounded_up(spent, 2), note, min(1.0, spent / run.budget))


def _traffic_tile(rows: Sequence[Mapping[str, Any]]) -> Tile:
    if not all(map(has_client_counts, rows)):
        return Tile("traffic", "–", "known to the server only")
    down, up = (sum(row[key] for row in rows) for key in ("bytes_down", "bytes_up"))
    return Tile("traffic", _bytes(down + up), f"{_bytes(down)} to the clients, {_bytes(up)} to the server")


def _time_tile(rows: Sequence[Mapping[str, Any]], rounds_left: int) -> Tile:
    seconds = [sum(row[key] for key in PHASES) for row in rows]
    recent = seconds[1:][-_RECENT:]
    parts = [f"last round {_duration(recent[-1])}"] if recent else []
    parts += [f"about {_duration(rounds_left * median(recent))} left"] if recent and rounds_left else []
    return Tile("time", _duration(sum(seconds)), ", ".join(parts))


def state(record: Mapping[str, Any], run: Run | None, changed: float, now: float) -> Tile:
    """Return the run's state.

    Args:
        record: Content of ``run.json``; empty if the run is followed from elsewhere.
        run: The run, if a round has ended.
        changed: Unix time of the last change in the run directory.
        now: Unix time.
    """
    recorded = str(record.get("state") or "running")
    note = str(record.get("reason") or "")
    if recorded == "running" and run is not None and run.state == "finished":
        recorded = "finished"
    if recorded == "running":
        note = f"last change {_duration(max(0.0, now - changed))} ago"
    return Tile("state", recorded, note)


def client_rows(statuses: Mapping[int, ClientStatus], run: Run | None, now: float) -> list[ClientRow]:
    """Return the rows of the table of clients, at most `_MAX_CLIENTS`."""
    epsilons = run.rows[-1].get("client_epsilons", {}) if run else {}
    budget = run.budget if run else None
    return [_client_row(client, statuses[client], epsilons, budget, now) for client in sorted(statuses)[:_MAX_CLIENTS]]


def _client_row(
    client: int, status: ClientStatus, epsilons: Mapping[str, Any], budget: float | None, now: float
) -> ClientRow:
    waits = status.state == TRAINING
    seconds = max(0.0, now - status.since) if waits else status.seconds
    epsilon = epsilons.get(str(client))
    return ClientRow(
        name=str(client),
        state=status.state,
        kind=str(_STATES.index(status.state)) if status.state in _STATES else "",
        server_round=str(status.server_round or "–"),
        seconds="–" if seconds is None else f"{seconds:.0f}" if waits else f"{seconds:.1f}",
        train_seconds="–" if status.train_seconds is None else f"{status.train_seconds:.1f}",
        epsilon="–" if epsilon is None else rounded_up(epsilon, 2),
        share=None if epsilon is None or not budget else min(1.0, epsilon / budget),
        reason=status.reason,
    )


def clients_summary(statuses: Mapping[int, ClientStatus]) -> str:
    """Count the clients by state, as in ``2 training, 1 replied``."""
    counts = {name: sum(status.state == name for status in statuses.values()) for name in _STATES}
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"{text}; the first {_MAX_CLIENTS} are shown" if len(statuses) > _MAX_CLIENTS else text


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def clock(now: float) -> str:
    """Return the local time."""
    return time.strftime("%H:%M:%S", time.localtime(now))
