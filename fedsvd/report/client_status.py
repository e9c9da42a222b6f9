"""Clients' states in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedsvd.runs.client_status import EXCLUDED, REPLIED, TRAINING, ClientStatus


def status_line(clients: Sequence[int], status: ClientStatus) -> str:
    """Describe a change on one line, as in ``round 3: client 1 replied after 8.1 s (3.2 s of training)``."""
    subject = f"client{'s' * (len(clients) != 1)} {', '.join(map(str, clients))}"
    prefix = f"round {status.server_round}: " if status.server_round else ""
    if status.state == TRAINING:
        return f"{prefix}waiting for {subject}"
    if status.state == EXCLUDED:
        return f"{prefix}{subject} {state_text(status)}: {status.reason}"
    return f"{prefix}{subject} {state_text(status)}"


def state_text(status: ClientStatus) -> str:
    """Describe a client's state without its reason."""
    after = "" if status.seconds is None else f" after {status.seconds:.1f} s"
    if status.state == REPLIED:
        own = "" if status.train_seconds is None else f" ({status.train_seconds:.1f} s of training)"
        return f"replied{after}{own}"
    return f"excluded{after}" if status.state == EXCLUDED else status.state


def statuses_line(statuses: Mapping[int, ClientStatus], now: float) -> str:
    """Describe all clients on one line, as in ``client 0 training for 12 s · client 1 replied after 8.1 s``."""
    return " · ".join(f"client {client} {_state_now(status, now)}" for client, status in sorted(statuses.items()))


def _state_now(status: ClientStatus, now: float) -> str:
    if status.state == TRAINING:
        return f"training for {max(0.0, now - status.since):.0f} s"
    return state_text(status)
