"""The rows of a ledger: charges, and events that change which data the charges count against.

A ledger contains one or more accounts, numbered from 1. Charges of one account add up, whichever data they were made
on. A new account is for data of other people: the charges of earlier accounts do not count against it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from fedsvd.privacy import ledger_schema
from fedsvd.privacy.accounting import Spend


@dataclass(frozen=True)
class Budget:
    """The privacy budget that a client allows.

    Attributes:
        target_epsilon: Maximum ε of one run, as identified by Flower's run id, at ``target_delta``.
        target_delta: δ of one run.
        max_epsilon: Maximum ε of all spends in the ledger's current account, at ``max_delta``.
        max_delta: δ of all spends in the ledger's current account.
        accountant: As for `fedsvd.epsilon`.

    Example:
        >>> import fedsvd
        >>> fedsvd.Budget(target_epsilon=4.0, target_delta=1e-5, max_epsilon=8.0, max_delta=1e-5, accountant="prv")
        Budget(target_epsilon=4.0, target_delta=1e-05, max_epsilon=8.0, max_delta=1e-05, accountant='prv')
    """

    target_epsilon: float
    target_delta: float
    max_epsilon: float
    max_delta: float
    accountant: str


@dataclass(frozen=True)
class Entry:
    """One charge: the run, round and message that caused it, the spend, and the budget at that time.

    Attributes:
        run_id: Flower's run id, or the account of a run that is charged as a whole.
        server_round: The round; 0 for a run that is charged as a whole.
        message_id: Flower's message id; for a run that is charged as a whole, an id made from the account.
        spend: The spend that was charged.
        budget: The budget that the client allowed at that time.
        reserved_at: Time of the charge, before training; UTC, ISO 8601.
        released_at: Time at which the result was released for sending, in the same format. None if it was never
            released; then it cannot have left the client.
        account: Number of the ledger's account that was charged, from 1.
        fingerprint: Fingerprint of the data that the charge was made on.
    """

    run_id: str
    server_round: int
    message_id: str
    spend: Spend
    budget: Budget
    reserved_at: str
    released_at: str | None
    account: int = 1
    fingerprint: str = ""


@dataclass(frozen=True)
class Event:
    """A change of the data, or a new account.

    Attributes:
        charges_before: Number of charges that were in the ledger.
        account: Number of the account that is current after the event, from 1.
        kind: ``data``: the next charge is made on other data, and the account's earlier charges count against them.
            ``account``: the owner opened a new account.
        old_fingerprint: Fingerprint of the data before the event.
        new_fingerprint: Fingerprint of the data after it; empty for a new account, whose first charge determines it.
        reason: The owner's reason for a new account, empty otherwise.
        recorded_at: Time of the event; UTC, ISO 8601.
    """

    charges_before: int
    account: int
    kind: str
    old_fingerprint: str
    new_fingerprint: str
    reason: str
    recorded_at: str


@dataclass(frozen=True)
class LedgerState:
    """A consistent view of a whole ledger.

    Attributes:
        entries: All charges, oldest first.
        events: All changes of the data and new accounts, oldest first.
        account: Number of the current account.
        fingerprint: Fingerprint of the data of the last charge or event.
        is_bound: Whether the current account belongs to data already; False for a new account without charges.
    """

    entries: tuple[Entry, ...]
    events: tuple[Event, ...]
    account: int
    fingerprint: str
    is_bound: bool

    @property
    def counting(self) -> list[Entry]:
        """The charges that count against the present data: those of the current account."""
        return [entry for entry in self.entries if entry.account == self.account]

    def has_earlier_account_of(self, fingerprint: str) -> bool:
        """Return whether an earlier account was charged for this data."""
        return any(entry.fingerprint == fingerprint and entry.account < self.account for entry in self.entries)


def read_state(connection: sqlite3.Connection) -> LedgerState:
    """Read all charges and events; call this within a transaction if another process may write."""
    [fingerprint] = connection.execute("SELECT fingerprint FROM owner").fetchone()
    spends = connection.execute(
        f"SELECT spend.id, released_at, {ledger_schema.SPEND_COLUMNS} "  # noqa: S608
        "FROM spend LEFT JOIN release ON spend_id = spend.id ORDER BY spend.id"
    ).fetchall()
    rows = ledger_schema.read_events(connection)
    entries: list[Entry] = []
    events: list[Event] = []
    account, is_bound = 1, True
    for spend_id, released_at, *row in [*spends, (None, None)]:
        while len(events) < len(rows) and (spend_id is None or rows[len(events)][0] < spend_id):
            _, kind, old, new, reason, recorded_at = rows[len(events)]
            account += kind == ledger_schema.NEW_ACCOUNT
            fingerprint, is_bound = new or old, bool(new)
            events.append(Event(len(entries), account, kind, old, new, reason, recorded_at))
        if spend_id is not None:
            entries.append(_entry(row, released_at, account, fingerprint))
    return LedgerState(tuple(entries), tuple(events), account, fingerprint, is_bound)


def _entry(row: Sequence[object], released_at: str | None, account: int, fingerprint: str) -> Entry:
    run_id, server_round, message_id, *numbers, reserved_at = row
    spend, budget = Spend(*numbers[:3]), Budget(*numbers[3:])  # type: ignore[arg-type]
    return Entry(
        str(run_id),
        int(str(server_round)),
        str(message_id),
        spend,
        budget,
        str(reserved_at),
        released_at,
        account,
        fingerprint,
    )
