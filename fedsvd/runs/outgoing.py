"""What of a row of ``metrics.jsonl`` may leave the server: to those who follow a run, to trackers, to its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedsvd.config import Config

# Who took part in a round, how many, and what follows from it.
_OF_CLIENTS = frozenset(
    {
        "client_epsilons",
        "clients_sampled",
        "clients_used",
        "clients_refused",
        "replies_dropped",
        "bytes_down",
        "bytes_up",
    }
)


def outgoing_row(row: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return those items of a row that may leave the server.

    Client-level privacy relies on nobody but the server knowing which clients were sampled, so that nothing may leave
    from which this or their number follows.

    Args:
        row: A row of ``metrics.jsonl``.
        config: The run's configuration.
    """
    hidden = _OF_CLIENTS if config.privacy.hides_sampling else frozenset()
    return {key: value for key, value in row.items() if key not in hidden}
