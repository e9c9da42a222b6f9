"""What each client of a run is doing: ``sites.json`` of the run directory, for people who follow the run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# States of a client, in the order in which a round passes through them.
MISSING, CONNECTED, TRAINING, REPLIED, EXCLUDED = "not connected", "connected", "training", "replied", "excluded"


@dataclass(frozen=True)
class ClientStatus:
    """What one client is doing, or has done last.

    Attributes:
        state: One of the states of this module.
        since: Unix time of the change to this state.
        server_round: The round of the request that it works on, or has answered; 0 before the first.
        seconds: Seconds from the request to the reply; None before it.
        train_seconds: Those of them that the client reports for its round; None if it reports none.
        reason: Why it is excluded, in the client's or the server's words.
    """

    state: str
    since: float
    server_round: int = 0
    seconds: float | None = None
    train_seconds: float | None = None
    reason: str = ""


class StatusBoard:
    """The clients' states, on the server.

    Args:
        num_clients: Number of clients of the run; all start as not connected.
        listen: Called after each change with the clients that have changed, and their new state.
        clock: Returns the Unix time.
        prints: Whether ``listen`` prints changes, so that the log need not have them, too.
        hides_rounds: Whether the log must not say what single clients do in a round.
    """

    def __init__(
        self,
        num_clients: int,
        listen: Callable[[Sequence[int], ClientStatus], None] = lambda clients, status: None,
        clock: Callable[[], float] = time.time,
        *,
        prints: bool = False,
        hides_rounds: bool = False,
    ) -> None:
        self.prints = prints
        self.hides_rounds = hides_rounds
        self._listen = listen
        self._clock = clock
        self.statuses = {client: ClientStatus(MISSING, clock()) for client in range(num_clients)}

    def connected(self, client: int) -> None:
        """Record that a client is connected and ready."""
        self._set([client], ClientStatus(CONNECTED, self._clock()))

    def requested(self, clients: Sequence[int], server_round: int) -> None:
        """Record that clients were asked to train in a round."""
        self._set(clients, ClientStatus(TRAINING, self._clock(), server_round))

    def replied(self, client: int, train_seconds: float) -> None:
        """Record a valid reply."""
        self._ended(client, REPLIED, train_seconds)

    def excluded(self, client: int, reason: str) -> bool:
        """Record that a client cannot take part, has declined or failed, or that its reply is invalid or missing.

        Returns:
            Whether this was printed.
        """
        return self._ended(client, EXCLUDED, None, reason) and self.prints

    def _ended(self, client: int, state: str, train_seconds: float | None, reason: str = "") -> bool:
        # Nodes may name any number, and a second reply changes nothing.
        before = self.statuses.get(client)
        if before is None or before.state in (REPLIED, EXCLUDED):
            return False
        now = self._clock()
        seconds = now - before.since if before.state == TRAINING else None
        self._set([client], ClientStatus(state, now, before.server_round, seconds, train_seconds, reason))
        return True

    def _set(self, clients: Sequence[int], status: ClientStatus) -> None:
        self.statuses |= dict.fromkeys(clients, status)
        self._listen(clients, status)


def statuses_document(statuses: Mapping[int, ClientStatus]) -> dict[str, Any]:
    """Return the content of ``sites.json``."""
    return {"sites": {str(client): asdict(status) for client, status in sorted(statuses.items())}}


def read_statuses(document: Mapping[str, Any]) -> dict[int, ClientStatus]:
    """Read the content of ``sites.json``; empty for a run that has written none."""
    return {int(client): ClientStatus(**values) for client, values in document.get("sites", {}).items()}
