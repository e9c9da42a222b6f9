"""New accounts in a ledger, which only the owner's command line opens: no message from a server leads here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from fedsvd.errors import LedgerError
from fedsvd.privacy import ledger_schema, ledger_storage
from fedsvd.privacy.ledger_entries import LedgerState, read_state

# Fingerprint of a server's ledger of one client-level private run, which belongs to the run's clients, not to data.
SERVER_FINGERPRINT = "client-level account of one run"


def open_account(path: Path, reason: str, check: Callable[[LedgerState], object] | None = None) -> int:
    """Start a new account, for data of other people than those of all earlier charges.

    Earlier charges stay in the ledger, and do not count against the new account. The first charge binds the account to
    its data, which must not be data that an earlier account was charged for.

    Args:
        path: An existing ledger.
        reason: The owner's reason, which is stored in the ledger.
        check: Called with the state of the ledger before anything is written; if it raises an error, no account is
            opened.

    Returns:
        Number of the new account.

    Raises:
        LedgerError: The file does not exist, is damaged, is not a ledger, or cannot be written; or it is the server's
            ledger of a client-level private run, whose clients are the same in every round.
    """
    with closing(ledger_storage.connect(path, None)) as connection:
        if check is not None:
            # Outside the transaction: ε of a long history takes seconds, in which no client could charge.
            with ledger_storage.snapshot(connection, path):
                state = read_state(connection)
            check(state)
        with ledger_storage.transaction(connection, path):
            state = read_state(connection)
            if state.fingerprint == SERVER_FINGERPRINT:
                raise LedgerError(
                    f"{path} is the server's ledger of one run with client-level privacy: the clients of a run do not "
                    "change, so it has one account. Start a new run."
                )
            ledger_schema.add_event(connection, ledger_schema.NEW_ACCOUNT, state.fingerprint, "", reason)
    return state.account + 1
