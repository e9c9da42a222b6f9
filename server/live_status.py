"""What people who follow a run see of it while it is in progress: the clients' states, and each round as it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fedsvd.config import Config
from fedsvd.config.compose import to_yaml
from fedsvd.report.progress import Reporter
from fedsvd.runs import events
from fedsvd.runs.client_status import ClientStatus, StatusBoard
from fedsvd.runs.folder import RunFolder
from fedsvd.runs.outgoing import outgoing_row

# Of many clients, not every change is written.
_MANY_CLIENTS, _PAUSE_S = 100, 1.0


class LiveStatus:
    """Write ``sites.json``; on real nodes, also print changes and rounds, for people and as `fedsvd.runs.events`.

    With client-level privacy nothing is said of single clients, nor of their number in a round: its guarantee assumes
    that nobody learns which clients a round has sampled (see `fedsvd.runs.outgoing`).

    Attributes:
        board: To be told what each client is doing.

    Args:
        config: The run's configuration.
        folder: The run directory.
        reporter: Prints changes on real nodes.
        history: Rows of the rounds before, if the run is resumed.
    """

    def __init__(
        self, config: Config, folder: RunFolder, reporter: Reporter, history: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self._config = config
        self._folder = folder
        self._reporter = reporter
        self._is_remote = config.federation.name == "remote"
        self._hides_statuses = config.privacy.hides_sampling
        self._written = 0.0
        prints = self._is_remote and not self._hides_statuses
        num_clients = config.federation.num_clients
        self.board = StatusBoard(num_clients, self._changed, prints=prints, hides_rounds=self._hides_statuses)
        if self._is_remote:
            _print(events.started_event(to_yaml(config)), *map(self._row_event, history))

    def _changed(self, clients: Sequence[int], status: ClientStatus) -> None:
        if self._hides_statuses:
            return
        statuses = self.board.statuses
        if len(statuses) <= _MANY_CLIENTS or time.monotonic() > self._written + _PAUSE_S:
            self._write()
        if self._is_remote:
            self._reporter.statuses_changed(clients, status)
            _print(events.statuses_event({client: statuses[client] for client in clients}))

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Handle the end of a round that has been evaluated and written."""
        if not self._hides_statuses:
            self._write()
        if self._is_remote:
            _print(self._row_event(row))

    def _row_event(self, row: Mapping[str, Any]) -> str:
        return events.row_event(outgoing_row(row, self._config))

    def _write(self) -> None:
        self._written = time.monotonic()
        # The run does not depend on this file; a full disk is reported when the round is written.
        with suppress(OSError):
            events.write_statuses(self._folder, self.board.statuses)


def _print(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
